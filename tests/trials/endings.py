"""Runs that end: torchrun of two ranks, time and again, of training and sampling; each has to exit with 0.

python -m tests.trials.endings FOLDER [--runs 100] [--kinds ddp fsdp sequence sample] [--jobs 4 | --forked]

A line of FOLDER/endings.jsonl for each run that ended or was ended; called again, it goes on where it stopped.
"""

import argparse
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from latte_fast.cli import main as latte_fast
from latte_fast.training import Trainer
from tests.helpers.ending import as_the_group_goes
from tests.helpers.tiny_run import tiny

ROOT = Path(__file__).parents[2]
RESULTS = "endings.jsonl"
LIMIT = 120.0  # seconds after which a run hangs
CONFIG = """
model: {patch_size: 4, hidden_size: 16, depth: 2, num_heads: 2}
data: {kind: shapes, clips: 11}
frames: 2
size: 8
steps: 4
batch: 4
log_every: 4
save_every: 4
"""
TRAIN = ("train", "--config", "x.yaml")
KINDS = {
    "ddp": (*TRAIN, "--parallel", "ddp"),
    "fsdp": (*TRAIN, "--parallel", "fsdp"),
    "sequence": (*TRAIN, "--sequence", "2"),
    "sample": ("sample", "run", "--sequence", "2", "--samples", "2", "--batch", "2", "--steps", "2", "--format", "npz",
               "--weights", "model"),
}  # fmt: skip


def prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.yaml").write_text(CONFIG)
    torch.set_num_threads(1)
    if not (folder / "run").exists():
        Trainer(tiny(folder / "run", steps=2), say=lambda text: None).run()


def before_forks() -> None:
    """Imports what commands import, and takes all that there is out of garbage collection, which each fork repeats."""
    for name in ("latte_fast.cli.sample", "latte_fast.cli.train", "torch.distributed.fsdp", "tyro"):
        importlib.import_module(name)
    gc.freeze()


def under_torchrun(folder: Path, args: tuple[str, ...]) -> tuple[int | None, str]:
    """Returns the exit code of torchrun, None where it hangs, and what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "latte_fast", *args]  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            said = process.communicate(timeout=LIMIT)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0].decode(errors="replace")
        return process.returncode, said.decode(errors="replace")


def in_forks(folder: Path, args: tuple[str, ...]) -> tuple[int | None, str]:
    """As under_torchrun, in two forks of this process, which end as any interpreter does; none may hold the group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
            os.environ.update(env, RANK=str(rank), LOCAL_RANK=str(rank))
            handle = os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1), os.dup2(handle, 2)
            os.chdir(folder)
            sys.argv = ["latte-fast", *args]
            as_the_group_goes(lambda alive: sys.exit(f"alive: {alive}") if alive else print("alive: []"))
            latte_fast()
            sys.exit()
        children.append(child)
    end, codes = time.monotonic() + LIMIT, []
    for child in children:
        while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
            time.sleep(0.01)
        if not done[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        codes.append(os.waitstatus_to_exitcode(done[1]) if done[0] else None)
    said = "".join((folder / f"said-{rank}").read_text(errors="replace") for rank in range(2))
    if said.count("alive: []") != 2:
        codes.append(1)
    return None if None in codes else next((code for code in codes if code), 0), said


def main(folder: Path, runs: int, kinds: list[str], minutes: float, jobs: int, forked: bool) -> int:
    folder = folder.resolve()
    prepare(folder)
    if forked:
        before_forks()
    results = folder / RESULTS
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    counts, end = Counter(line["kind"] for line in lines), time.monotonic() + 60 * minutes

    def run(number: int, kind: str) -> None:
        if time.monotonic() > end:
            return
        out, began = folder / f"out-{kind}-{number}", time.monotonic()
        shutil.rmtree(out, ignore_errors=True)
        code, said = (in_forks if forked else under_torchrun)(folder, (*KINDS[kind], "--out", str(out)))
        shutil.rmtree(out, ignore_errors=True)
        line = {"kind": kind, "code": code, "seconds": round(time.monotonic() - began, 2)}
        lines.append(line | ({"said": said[-2000:]} if code else {}))
        with results.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")

    left = [(number, kind) for number in range(runs) for kind in kinds if number >= counts[kind]]
    if jobs == 1:
        for number, kind in left:
            run(number, kind)
    else:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, *zip(*left, strict=True)))
    for kind in kinds:
        mine = [line for line in lines if line["kind"] == kind]
        ended, hung = sum(line["code"] == 0 for line in mine), sum(line["code"] is None for line in mine)
        mean = sum(line["seconds"] for line in mine) / max(1, len(mine))
        print(f"{kind}: {len(mine)} of {runs} runs, {ended} exit with 0, {hung} hang, {mean:.1f} s each")
    return int(any(line["code"] != 0 for line in lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=100, help="runs of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--minutes", type=float, default=45.0, help="no run begins later")
    parser.add_argument("--jobs", type=int, default=1, help="torchruns at a time, each on two cores or more")
    parser.add_argument("--forked", action="store_true", help="forks in torchrun's place, which begin in no time")
    given = parser.parse_args()
    if given.forked and given.jobs != 1:
        parser.error("--jobs must be 1 with --forked, as threads do not survive a fork")
    sys.exit(main(given.folder, given.runs, given.kinds, given.minutes, given.jobs, given.forked))
