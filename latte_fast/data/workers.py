"""Processes that read data: they leave stops to the main process, and none outlives it."""

import os
import signal
from collections.abc import Generator
from typing import Any

import torch
from torch.utils.data import DataLoader


def read_all(loader: DataLoader) -> Generator[Any, None, None]:
    """Yields what a loader reads; leaves no process behind when it is closed or ended by an error."""
    batches: Any = iter(loader)
    try:
        yield from batches
    finally:
        # __del__ calls this too, but late where an error's traceback holds the iterator: at exit Python would then
        # wait for workers, which ignore SIGTERM
        if loader.num_workers:
            batches._shutdown_workers()


def leave_signals(worker: int) -> None:
    """Makes a worker use one thread and ignore SIGINT and SIGTERM, on which the main process ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
