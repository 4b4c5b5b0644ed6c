"""Many samples of a model: sample i depends on the seed and i alone, in fixed chunks that any number of ranks share.

A chunk is `batch` consecutive indices, the last one padded, so that every chunk has the same shape and a sample the
same neighbours on any number of ranks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latte_fast.diffusion.noise import Use, generator


class Chunk(NamedTuple):
    """Samples `numbers`, of which the first `wanted` are kept; none of a chunk that only keeps ranks in step."""

    numbers: list[int]
    wanted: int


def chunks(count: int, batch: int, rank: int = 0, ranks: int = 1, in_step: bool = False) -> list[Chunk]:
    """A rank's share of the chunks of samples 0 .. count - 1.

    Args:
        count: samples in all.
        batch: of a chunk.
        rank: of this process.
        ranks: processes that share the chunks.
        in_step: every rank gets equally many, the surplus unwanted, as a model sharded over ranks needs.
    """
    for name, value in (("count", count), ("batch", batch)):
        if value < 1:
            raise ValueError(f"chunks: {name} must be positive, got {value}")
    first = list(range(0, count, batch))
    mine = [Chunk(list(range(i, i + batch)), min(batch, count - i)) for i in first[rank::ranks]]
    if in_step:
        most = -(-len(first) // ranks)
        mine += [Chunk(list(range(batch)), 0)] * (most - len(mine))
    return mine


def labels_of(numbers: Sequence[int], asked: Sequence[int], classes: int, seed: int) -> Tensor:
    """(B,) the classes of samples: those asked for in turn, or drawn by (seed, number) where none is."""
    if asked:
        return torch.tensor([asked[number % len(asked)] for number in numbers])
    return torch.tensor([int(generator(seed, number, Use.LABEL).integers(classes)) for number in numbers])
