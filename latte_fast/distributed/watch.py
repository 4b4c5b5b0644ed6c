"""A rank that ends before the others: they notice, say which it was, and end too."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

# seconds between two looks at the other processes, and what a rank has to end by itself once one is gone
LOOKS, GRACE = 1.0, 20.0
# seconds until a process whose connection is closed has ended
CLOSING = 5.0
# what errors of a broken connection say
_BROKEN = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl")


class RankLost(ConnectionError):
    """Raised where another rank of the run has ended; the message names it."""


class Process(NamedTuple):
    """A rank's process; `began` tells it from a later one of the same number."""

    rank: int
    host: str
    pid: int
    began: str


class Watch:
    """Looks whether the ranks on this machine live, in a thread of its own; a rank that waits for a lost one is ended.

    Other machines' ranks are watched by whatever started them there, and end as their connections break.
    """

    def __init__(self, rank: int, count: int):
        own = Process(rank, socket.gethostname(), os.getpid(), _state(os.getpid())[1])
        every: list[Any] = [None] * count
        dist.all_gather_object(every, own)
        self.others = [p for p in every if p.host == own.host and p.rank != rank]
        self.done = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def close(self) -> None:
        self.done.set()

    def lost(self) -> str | None:
        """Names a rank that has ended; None while all live."""
        for process in self.others:
            state, began = _state(process.pid)
            if state in ("", "Z", "X") or began != process.began:
                return f"rank {process.rank} (process {process.pid}) ended before the others"
        return None

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Raises the error of a broken connection as RankLost where a rank has ended."""
        try:
            yield
        except RuntimeError as error:
            if not any(part in str(error).lower() for part in _BROKEN):
                raise
            end = time.monotonic() + CLOSING
            while (said := self.lost()) is None and time.monotonic() < end:
                time.sleep(0.05)
            if said is None:
                raise
            raise RankLost(said) from error

    def _look(self) -> None:
        while not self.done.wait(LOOKS):
            said = self.lost()
            if said is not None and not self.done.wait(GRACE):
                print(f"latte-fast: {said}, and this one waits for it in vain", file=sys.stderr, flush=True)
                os._exit(1)


def _state(pid: int) -> tuple[str, str]:
    """Returns a process's state, empty where there is none, and when it began, in ticks; empty without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "", ""
    except OSError:
        pass
    return "R", ""
