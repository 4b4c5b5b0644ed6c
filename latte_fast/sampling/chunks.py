"""Splits samples into fixed chunks, which any number of ranks share.

A chunk is `batch` consecutive sample numbers, the last chunk padded, so that every chunk has the same shape and a
sample the same neighbours on any number of ranks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latte_fast.diffusion.noise import Use, generator


class Chunk(NamedTuple):
    """Sample numbers drawn together, the first `wanted` of them kept: none where a chunk only keeps ranks in step."""

    numbers: list[int]
    wanted: int


def chunks(count: int, batch: int, rank: int = 0, ranks: int = 1, in_step: bool = False) -> list[Chunk]:
    """Returns a rank's share of the chunks of samples 0 .. count - 1.

    Args:
        count: total number of samples.
        batch: number of samples in a chunk.
        rank: number of this rank.
        ranks: number of ranks that share the chunks.
        in_step: whether every rank gets equally many, the surplus not kept, as a model sharded over ranks needs.
    """
    for name, value in (("count", count), ("batch", batch)):
        if value < 1:
            raise ValueError(f"chunks: {name} must be positive, got {value}")
    every = [Chunk(list(range(i, i + batch)), min(batch, count - i)) for i in range(0, count, batch)]
    return share(every, rank, ranks, in_step)


def share(every: list[Chunk], rank: int, ranks: int, in_step: bool) -> list[Chunk]:
    """Returns a rank's share of some chunks."""
    mine = every[rank::ranks]
    if in_step and every:
        most = -(-len(every) // ranks)
        mine += [every[0]._replace(wanted=0)] * (most - len(mine))
    return mine


def labels_of(numbers: Sequence[int], labels: Sequence[int], classes: int, seed: int) -> Tensor:
    """Returns the classes (B,) of samples: those in `labels` in turn, or drawn by (seed, number) where it is empty."""
    if labels:
        return torch.tensor([labels[number % len(labels)] for number in numbers])
    return torch.tensor([int(generator(seed, number, Use.LABEL).integers(classes)) for number in numbers])
