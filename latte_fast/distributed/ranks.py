"""Ranks: this process among all of a run, and what they reduce and broadcast."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latte_fast.distributed.watch import Watch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among `count`; a single process needs no process group.

    Neighbours may form teams of `together` ranks that work on the same clips.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    together: int = 1
    # called before the process group goes: each drops what holds the group
    closers: list[Callable[[], None]] = field(default_factory=list, compare=False, repr=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def team(self) -> int:
        return self.rank // self.together

    @property
    def teams(self) -> int:
        return self.count // self.together

    @property
    def leads(self) -> bool:
        """Whether this rank writes what its team has made."""
        return self.rank % self.together == 0

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """Returns the sum over ranks, the same on each."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank; reduced on the CPU, so that no GPU waits."""
        if self.count == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes)
        return bool(votes.item())

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Calls `make` on rank 0 and returns its result on every rank; its error is raised on all."""
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box = [make(), None]
            except Exception as error:
                box = [None, error]
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]


def alone() -> Ranks:
    """Returns a process that shares its work with no other, on the GPU where there is one."""
    return Ranks(device=torch.device("cuda") if torch.cuda.is_available() else CPU)


@contextmanager
def start() -> Iterator[Ranks]:
    """Yields the ranks that torchrun set up, or a single one; the process group lives as long as the context."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if count == 1 or dist.is_initialized():
        yield Ranks(rank, count, device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    ranks, finished, watch = Ranks(rank, count, device), False, Watch(rank, count)
    try:
        with watch.naming():
            yield ranks
        finished = True
    finally:
        # DDP's reducer and FSDP's state join a thread of the group when they go, and it may wait for Python's lock,
        # which they hold: the process hangs or aborts. So they go first.
        for close in reversed(ranks.closers):
            close()
        ranks.closers.clear()
        gc.collect()
        try:
            if finished:
                with watch.naming():
                    dist.barrier()
        finally:
            watch.close()
            dist.destroy_process_group()
