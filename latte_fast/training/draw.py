"""What a training sample meets beside its clip: noise, step and dropped labels, drawn by (seed, sample number).

They are drawn where the clip is read, in the loader's workers, so they cost the training process nothing.
"""

import itertools
import os
import signal
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from latte_fast.diffusion import sample_timesteps
from latte_fast.diffusion.noise import Use, generator, normal
from latte_fast.training.build import Task
from latte_fast.training.config import TrainConfig

# (sample number, (epoch, index))
Key = tuple[int, tuple[int, int]]
Batch = dict[str, Tensor]


class Numbered(Sampler):
    """A rank's (epoch, index) pairs with their sample numbers in the whole run.

    Args:
        pairs: of this rank, from sample `start` on, endless.
        batch: global.
        rank: of this process.
        ranks: in all.
        start: first sample of the run that is not yet trained on, a multiple of `batch`.
        end: samples of the whole run.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]], batch: int, rank: int, ranks: int, start: int, end: int):
        self.pairs, self.batch, self.rank, self.start, self.end = pairs, batch, rank, start, end
        self.share = batch // ranks

    def __iter__(self) -> Iterator[Key]:
        first = itertools.count(self.start + self.rank * self.share, self.batch)
        numbers = (base + i for base in first for i in range(self.share))
        for number, pair in zip(numbers, self.pairs, strict=False):
            if number >= self.end:
                return
            yield number, pair


class Drawn(Dataset):
    """A task's items with "noise" (F+n, C, h, w), "t", "drop" (1 + n,) where labels are dropped, and the family's own.

    Args:
        task: whose dataset has items by (epoch, index).
        config: of the run.
        dropout: how often a label is dropped.
    """

    def __init__(self, task: Task, config: TrainConfig, dropout: float):
        self.task, self.config, self.dropout = task, config, dropout

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        number, pair = key
        item = dict(self.task.dataset[pair])
        seed, process = self.config.seed, self.config.diffusion
        item["noise"] = normal(seed, number, self.task.latent, Use.NOISE)
        source = generator(seed, number, Use.TIME)
        torch_source = torch.Generator().manual_seed(int(source.integers(2**63)))
        t = sample_timesteps(process.timesteps, 1, process.steps, generator=torch_source, mean=process.shift)
        item["t"] = t[0]
        if self.dropout:
            item["drop"] = torch.from_numpy(source.random(1 + self.config.images) < self.dropout)
        if self.task.encoded:
            item["eps"] = normal(seed, number, self.task.latent, Use.LATENT)
        return item | self.task.family.drawn(item)


def read(
    data: Drawn, numbered: Numbered, micro: int, workers: int, device: torch.device
) -> Generator[Batch, None, None]:
    """Micro-batches on the device; closed, or ended by an error, it has no process left."""
    loader = DataLoader(
        data,
        micro,
        sampler=numbered,
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
