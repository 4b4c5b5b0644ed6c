"""Commands killed at random moments: gone on with, they give what an undisturbed one gives, byte for byte."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from tests.trials.commands import COMMANDS, begin, contents, prepare, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("kills") / "home")


def result(folder: Path, name: str, out: str) -> dict[str, bytes]:
    """Returns what has to be equal; a log tells times, a record its own path's."""
    if name == "evaluate":
        return contents(folder / f"{out}.json")
    held = contents(folder / out)
    if name == "train":
        lines = [json.loads(line) for line in held.pop("log.jsonl").splitlines()]
        losses = json.dumps([(line["step"], line["loss"], line["grad_norm"]) for line in lines])
        kept = {n: x for n, x in held.items() if n.endswith("step-0000008/model.safetensors") or "8/ema." in n}
        return kept | {"losses": losses.encode()}
    return held


def killed(folder: Path, name: str, kills: int, seed: int) -> str:
    rng = random.Random(seed)
    make = COMMANDS[name]
    began = time.monotonic()
    whole = run(folder, *make(f"{name}-{kills}-whole"))
    lasts = time.monotonic() - began
    assert whole.code == 0, whole.said
    want = result(folder, name, f"{name}-{kills}-whole")
    resume = () if name == "evaluate" else ("--resume",)
    done = runs = 0
    while done < kills:
        out = f"{name}-{kills}-{runs}"
        runs += 1
        while True:
            running = begin(folder, *make(out), *resume)
            ended = running.kill(rng.uniform(0, lasts)) if done < kills else running.wait()
            if ended.code == -signal.SIGKILL:
                done += 1
                continue
            assert ended.code == 0, ended.said
            break
        got = result(folder, name, out)
        assert got == want, {n for n in got.keys() | want.keys() if got.get(n) != want.get(n)}
        left = [p for p in folder.rglob(".*") if p.name.endswith(".lock") or ".partial" in p.name]
        assert not left, left
    return f"{name}: {done} kills, {runs} runs"


@pytest.mark.parametrize("name", ["encode", "sample"])
def test_one_kill(folder: Path, name: str) -> None:
    killed(folder, name, 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "encode", "sample", "evaluate"])
def test_twenty_kills(folder: Path, name: str) -> None:
    print(killed(folder, name, 20, 0))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_one_line(folder: Path, number: int, code: int) -> None:
    """Where the command is at work, which its folder shows."""
    for name in ("sample",):
        out = f"stopped-{name}-{code}"
        running = begin(folder, *COMMANDS[name](out), "--steps", "900")
        while not (folder / out / ".samples.json").exists():
            time.sleep(0.01)
        ended = running.kill(0.1, number)
        assert ended.code == code and not ended.crashed, ended.said
        assert ended.last == f"{name}: stopped; --resume goes on with the same options"
