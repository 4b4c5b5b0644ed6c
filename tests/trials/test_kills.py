"""Commands killed at random moments: gone on with, they give what an undisturbed one gives, byte for byte."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latte_fast.cli.endings import RESUMES
from latte_fast.data import encode
from latte_fast.evaluation import features
from latte_fast.locks import LOCK
from latte_fast.sampling import files
from tests.trials.commands import COMMANDS, begin, contents, prepare, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("kills") / "home")


def result(folder: Path, name: str, out: str) -> dict[str, bytes]:
    """Returns what has to be equal; a log tells times."""
    if name == "evaluate":
        return {"record": (folder / f"{out}.json").read_bytes()}
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


def slowly(call: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        return call(*args, **kwargs)

    return slow


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["encode", "sample", "evaluate"])
def test_a_stop_is_one_line(folder: Path, name: str, number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command is at work, which its folder shows; gone on with, it gives what an undisturbed one gives."""
    out = f"stopped-{name}-{code}"
    begun = {"encode": f"{out}/{LOCK}", "sample": f"{out}/.samples.json", "evaluate": f".{out}.json.lock"}[name]
    with monkeypatch.context() as patched:
        for owner, call in ((encode, "_encoded"), (files, "write_chunk"), (features.Pieces, "__getitem__")):
            patched.setattr(owner, call, slowly(getattr(owner, call)))
        running = begin(folder, *COMMANDS[name](out))
        while not (folder / begun).exists():
            time.sleep(0.01)
        ended = running.kill(0.1, number)
    assert ended.code == code and not ended.crashed, ended.said
    assert ended.last == f"{name}: stopped; {RESUMES[name]}"
    assert not [p for p in folder.rglob(".*") if p.name.endswith(".lock") or ".partial" in p.name]
    if name == "evaluate":
        assert not (folder / f"{out}.json").exists()
    ended = run(folder, *COMMANDS[name](out), *(() if name == "evaluate" else ("--resume",)))
    assert ended.code == 0, ended.said
    if name != "evaluate":
        assert contents(folder / out) == contents(folder / {"encode": "latents", "sample": "samples"}[name])
