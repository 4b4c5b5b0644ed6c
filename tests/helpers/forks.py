"""Ranks without torchrun: forks of a process that has imported torch, in a gloo group."""

import importlib
import os
import socket
import sys
import traceback
from collections.abc import Callable

import torch

from latte_fast.training import Ranks, start

# a fork of a process whose OpenMP threads have run waits for them forever: one thread starts none
torch.set_num_threads(1)
# what a training imports when it first needs it, which each fork would import again: a quarter of a second
for _name in ("checkpoint", "fsdp", "algorithms.join", "device_mesh"):
    importlib.import_module(f"torch.distributed.{_name}")
importlib.import_module("torch.profiler")


def fork(run: Callable[[], object], **env: str) -> int:
    """Forks a child that calls run and exits 0, or prints its traceback and exits 1; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(env)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the progress lines
        run()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(1)


def finish(*children: int) -> None:
    """Waits for all children; if one fails, kills the others, which would wait for it."""
    left = set(children)
    while left:
        child, status = os.wait()
        left.discard(child)
        if status:
            for other in left:
                os.kill(other, 9)
            raise SystemExit("a child failed; its traceback is above")


def on_ranks(count: int, run: Callable[[Ranks], object]) -> None:
    """Calls run on `count` ranks as torchrun would start them; a single rank has no process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def one() -> None:
        with start() as ranks:
            run(ranks)

    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": "lo"}
    finish(*(fork(one, RANK=str(rank), LOCAL_RANK=str(rank), **env) for rank in range(count)))
