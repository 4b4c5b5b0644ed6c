"""Reads micro-batches of a run's samples onto the device, in worker processes if `workers` is above 0."""

from collections.abc import Generator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from latte_fast.data.workers import leave_signals, read_all

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
    for batch in read_all(loader):
        yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}
