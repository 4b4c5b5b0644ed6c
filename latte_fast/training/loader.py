"""Reads micro-batches of a run's samples onto the device, in worker processes if `workers` is above 0."""

import os
import signal
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Batch = dict[str, Tensor]


def read(data: Dataset, keys: Sampler, micro: int, workers: int, device: torch.device) -> Generator[Batch, None, None]:
    """Yields micro-batches on the device; leaves no process behind when it is closed or ended by an error."""
    loader = DataLoader(
        data,
        micro,
        sampler=keys,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals if workers else None,
        persistent_workers=False,
    )
    batches: Any = iter(loader)
    try:
        for batch in batches:
            yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    finally:
        # __del__ calls this too, but late where an error's traceback holds the iterator: at exit Python would then
        # wait for workers, which ignore SIGTERM
        if workers:
            batches._shutdown_workers()


def leave_signals(worker: int) -> None:
    """Makes a worker use one thread and ignore SIGINT and SIGTERM, on which the main process ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
