"""The order of samples: a function of (seed, sample number) alone, the same for any number of ranks and workers."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from latte_fast.data.seeding import SampleKey, generator


class GlobalSampler(Sampler[SampleKey]):
    """Yields the samples of a run in order: sample s is entry s % length of the permutation of (seed, s // length).

    Samples start + k*batch .. start + (k+1)*batch are one global batch. Each rank takes one of equal parts of it, in
    the order of ranks, so the parts laid end to end are the batch that one process would see.

    Args:
        length: number of items in the data set.
        batch: number of samples in a global batch, over all ranks.
        seed: seed of the permutations.
        rank: number of this rank.
        ranks: number of ranks that share each batch.
        start: number of the first sample in the run; when resuming, how many were seen before.
        shuffle: whether to permute each epoch; False keeps the data set's own order.
        end: number of samples in the whole run; None for no end.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        start: int = 0,
        shuffle: bool = True,
        end: int | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"GlobalSampler: length must be at least 1, got {length}")
        if ranks < 1 or not 0 <= rank < ranks:
            raise ValueError(f"GlobalSampler: rank must be in 0 .. ranks - 1, got rank {rank} of {ranks}")
        if batch < 1 or batch % ranks:
            raise ValueError(f"GlobalSampler: batch must be a positive multiple of {ranks} ranks, got {batch}")
        if start < 0 or seed < 0:
            raise ValueError(f"GlobalSampler: start and seed must not be negative, got {start} and {seed}")
        self.length, self.batch, self.seed = length, batch, seed
        self.rank, self.ranks, self.start, self.shuffle, self.end = rank, ranks, start, shuffle, end

    def __iter__(self) -> Iterator[SampleKey]:
        local = self.batch // self.ranks
        first = self.start + self.rank * local
        drawn, order = -1, np.arange(self.length)
        while True:
            for sample in range(first, first + local):
                if self.end is not None and sample >= self.end:
                    return
                epoch, place = divmod(sample, self.length)
                if self.shuffle and epoch != drawn:
                    drawn, order = epoch, generator(self.seed, epoch).permutation(self.length)
                yield SampleKey(epoch, int(order[place]), sample)
            first += self.batch
