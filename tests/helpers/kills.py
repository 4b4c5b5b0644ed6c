"""Kills training runs. To be run as a process: torch is imported once, and each training run is a fork.

python -m tests.helpers.kills FOLDER KILLS SEED     at random moments, then compares with a run left alone
python -m tests.helpers.kills FOLDER KILLS SEED vqgan    the same of a 3D-VQGAN's run
python -m tests.helpers.kills FOLDER KILLS SEED flex     the same of a FlexLatte's run
python -m tests.helpers.kills FOLDER KILLS SEED tokens   the same of a token transformer's run
python -m tests.helpers.kills FOLDER KILLS SEED writing  and then at each stage of writing a checkpoint
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint

from latte_fast.models.checkpoint import read_checkpoint
from latte_fast.runs import checkpoint
from latte_fast.runs.log import LOG, read_log
from latte_fast.training import Trainer
from tests.helpers.forks import finish, fork
from tests.helpers.tiny_run import tiny, tiny_flex
from tests.helpers.tiny_tokens import tiny_tokens_run
from tests.helpers.tiny_vqgan import tiny_vqgan_run

CONFIG = {"vqgan": tiny_vqgan_run, "flex": tiny_flex, "tokens": tiny_tokens_run}.get(sys.argv[-1], tiny)
# of a log line, all that does not depend on the machine's speed
TIMES = {"clips_per_s", "data_wait", "peak_bytes"}


def trained(out: Path, steps: int, keep: int = 3) -> None:
    Trainer(CONFIG(out, steps=steps, save_every=3, keep=keep), resume=True, say=lambda text: None).run()


def lines(out: Path) -> int:
    log = out / LOG
    return log.read_bytes().count(b"\n") if log.exists() else 0


def result(out: Path, steps: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    log = [{name: value for name, value in line.items() if name not in TIMES} for line in read_log(out / LOG)]
    return log, read_checkpoint(out / checkpoint.FOLDER / f"step-{steps:07d}" / "ema.safetensors")


def at_random(folder: Path, kills: int, seed: int) -> None:
    """Kills each child a few steps after its start, at any moment of a step or of writing a checkpoint."""
    rng = random.Random(seed)
    steps = 3 * kills
    finish(fork(lambda: trained(folder / "alone", steps)))
    done = during = 0
    round_ = 0
    while done < kills:
        out = folder / f"killed-{round_}"
        round_ += 1
        ended = False
        while not ended:
            child = fork(lambda out=out: trained(out, steps))  # type: ignore[misc]
            target, pause = lines(out) + rng.randint(1, 6), rng.uniform(0, 0.02)
            while not ended and (done == kills or lines(out) < target):
                ended = os.waitpid(child, os.WNOHANG) == (child, 0)
                time.sleep(0.001)
            if not ended:
                time.sleep(pause)
                os.kill(child, signal.SIGKILL)
                if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
                    done += 1
                    during += any((out / checkpoint.FOLDER).glob(".*.partial"))
                # a child that had finished does not count as killed; the next one finds nothing to do and ends
        (log, ema), (log_alone, ema_alone) = result(out, steps), result(folder / "alone", steps)
        assert len(log) == steps, f"{len(log)} lines for {steps} steps"
        assert log == log_alone, "losses differ"
        assert all(torch.equal(ema[name], ema_alone[name]) for name in ema_alone), "averages differ"
    print(f"{done} kills, {during} of them while a checkpoint was written, {round_} runs")


def while_writing(folder: Path) -> None:
    """Kills a child before and after each call that writes a checkpoint: at most the new checkpoint is lost.

    Before a call that follows another at once the files are those after that one.
    """
    stages = [
        (torch.distributed.checkpoint, "save", (False, True)),
        (checkpoint, "save_tensors", (True,)),
        (checkpoint, "_seal", (False, True)),
        (checkpoint.os, "rename", (True,)),
        (checkpoint.shutil, "rmtree", (False, True)),
    ]
    finish(fork(lambda: trained(folder / "first", 3, keep=1)))
    for i, (owner, name, moments) in enumerate(stages):
        for after in moments:
            out = folder / f"{i}-{after}"
            shutil.copytree(folder / "first", out)
            call = getattr(owner, name)

            def dying(*args: object, call: Callable = call, after: bool = after, **kwargs: object) -> None:
                if after:
                    call(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(owner, name, dying)
            child = fork(lambda out=out: trained(out, 6, keep=1))  # type: ignore[misc]
            setattr(owner, name, call)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), f"{name} was not reached"
            left = checkpoint.latest(out)
            assert left is not None and checkpoint.step_of(left) >= 3, f"killed in {name}: {left}"
            finish(fork(lambda out=out: trained(out, 6, keep=1)))  # type: ignore[misc]
            # after the rename nothing is left to write; the next checkpoint removes what the killed run left behind
            names = [p.name for p in sorted((out / checkpoint.FOLDER).glob("step-*"))]
            assert names[-1:] == ["step-0000006"], names
    print(f"{sum(len(moments) for *_, moments in stages)} kills while writing")


if __name__ == "__main__":
    home = Path(sys.argv[1])
    # makes torch import its lazy modules before the forks; trains no step, which would start threads
    Trainer(CONFIG(home / "unused"))
    at_random(home, int(sys.argv[2]), int(sys.argv[3]))
    if sys.argv[-1] == "writing":
        while_writing(home / "writing")
