"""Ranks that share clips, one of them killed: the others say which and end, and what is gone on with is the same."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from latte_fast.distributed import watch
from latte_fast.distributed.ranks import start
from latte_fast.locks import LOCK
from latte_fast.runs import checkpoint
from latte_fast.runs.log import LOG
from tests.trials.commands import COMMANDS, YAML, Running, begin_ranks, contents, prepare
from tests.trials.test_kills import result

ENDS_WITHIN = 60.0  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ranks") / "home")


def killed(folder: Path, name: str, kills: int, seed: int, after_steps: int = 0) -> str:
    """Kills one of two ranks at random moments, or after some steps, and goes on until the command has ended."""
    rng = random.Random(seed)
    make = COMMANDS[name]
    args = ("--sequence", "2")
    began = time.monotonic()
    for running in begin_ranks(folder, 2, *make(f"{name}-{kills}-whole"), *args):
        ended = running.wait_at_most(ENDS_WITHIN)
        assert ended.code == 0, ended.said
    lasts = time.monotonic() - began
    want = result(folder, name, f"{name}-{kills}-whole")
    done = runs = named = 0
    longest = 0.0
    while done < kills:
        out = f"{name}-{kills}-{runs}"
        runs += 1
        while True:
            (folder / out / LOCK).unlink(missing_ok=True)  # that of a killed rank
            both = begin_ranks(folder, 2, *make(out), *args, "--resume")
            lost = rng.randrange(2)
            if done < kills:
                kill_one(both[lost], folder / out, rng.uniform(0, lasts), after_steps)
            began = time.monotonic()
            ended = [running.wait_at_most(ENDS_WITHIN) for running in both]
            assert not any(e.crashed for e in ended), [e.said for e in ended]
            if ended[lost].code != -signal.SIGKILL:
                assert all(e.code == 0 for e in ended), [e.said for e in ended]
                break
            done += 1
            longest = max(longest, time.monotonic() - began)
            other = ended[1 - lost]
            if other.code:  # not killed after all was done
                assert f"rank {lost} (process {both[lost].pid}) ended before the others" in other.last, other.said
                named += 1
            if name == "train" and checkpoint.all_checkpoints(folder / out):
                assert checkpoint.latest(folder / out) is not None
        got = result(folder, name, out)
        assert got == want, {n for n in got.keys() | want.keys() if got.get(n) != want.get(n)}
        left = [p for p in contents(folder / out) if ".partial" in p or p.endswith(".lock")]
        assert not left, left
    assert named
    return f"{name}: {done} kills, {named} named by the other rank, which ended within {longest:.1f} s, {runs} runs"


def kill_one(rank: Running, out: Path, after: float, after_steps: int) -> None:
    """Kills a rank some seconds after it met the others, or after some steps; one that has ended has ended."""
    until(lambda: (out / LOCK).exists() or rank.has_ended())
    if after_steps:
        until(lambda: steps_of(out) >= after_steps)
        after = 0
    end = time.monotonic() + after
    while time.monotonic() < end and not rank.has_ended():
        time.sleep(0.001)
    os.kill(rank.pid, signal.SIGKILL)


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + ENDS_WITHIN
    while not there():
        assert time.monotonic() < end
        time.sleep(0.002)


def steps_of(run: Path) -> int:
    log = run / LOG
    return log.read_bytes().count(b"\n") if log.exists() else 0


def test_one_kill(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # forks inherit no threads
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x.yaml").write_text(YAML)
    killed(tmp_path / "home", "train", 1, 1, after_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "sample"])
def test_twenty_kills(folder: Path, name: str) -> None:
    print(killed(folder, name, 20, 0))


def test_a_rank_that_waits_in_vain_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with NCCL, whose calls do not end when another rank is gone."""
    monkeypatch.setattr(watch, "LOOKS", 0.1)
    monkeypatch.setattr(watch, "GRACE", 0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29517")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    children = []
    for rank in range(2):
        child = os.fork()
        if child:
            children.append(child)
            continue
        try:
            os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
            sys.stderr = (tmp_path / f"said-{rank}").open("w")
            with start():
                dist.barrier()
                (tmp_path / f"there-{rank}").touch()
                time.sleep(60)
        finally:
            os._exit(70)
    until(lambda: all((tmp_path / f"there-{rank}").exists() for rank in range(2)))
    os.kill(children[1], signal.SIGKILL)
    began = time.monotonic()
    status = os.waitpid(children[0], 0)[1]
    assert os.WEXITSTATUS(status) == 1 and time.monotonic() - began < 30
    assert f"rank 1 (process {children[1]}) ended before the others" in (tmp_path / "said-0").read_text()
    os.waitpid(children[1], 0)
