"""Micro-batches of a run's samples, on the device, read by processes of their own where asked for."""

import os
import signal
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Batch = dict[str, Tensor]


def read(data: Dataset, keys: Sampler, micro: int, workers: int, device: torch.device) -> Generator[Batch, None, None]:
    """Micro-batches on the device; closed, or ended by an error, it has no process left."""
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
        # its __del__ calls that too, but late where an error's traceback keeps it: at exit python would wait for its
        # processes, which leave SIGTERM be
        if workers:
            batches._shutdown_workers()


def leave_signals(worker: int) -> None:
    """What stops a run is for its main process, which ends its workers after the step at hand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
