"""Intervals of time steps in which a model is called with the same keywords, one interval for each update."""

import itertools
from typing import Any, NamedTuple

from latte_fast.diffusion.noise import Use, generator
from latte_fast.diffusion.timesteps import share_within
from latte_fast.models.adapter import Adapter
from latte_fast.runs.config import DiffusionConfig

# the golden ratio's fraction: its multiples fill [0, 1) most evenly, so that short runs see every interval by its share
_STRIDE = (5**0.5 - 1) / 2


class Interval(NamedTuple):
    """The time steps of an update, None for all, and the model's keywords there."""

    steps: range | None
    keywords: dict[str, Any]


class Densities:
    """Draws the interval of each update with the probability of its share of time steps.

    All clips of an update share an interval, whatever the number of ranks and micro-batches, and an update's interval
    depends on the seed and its number alone: a resumed run goes on as it would have.

    Args:
        adapter: adapter of the model's family.
        process: diffusion process of the run.
        seed: seed of the run.
    """

    def __init__(self, adapter: Adapter, process: DiffusionConfig, seed: int):
        # by time step, the first of them the sample's end
        rows = list(reversed(adapter.step_keywords(process.steps)))
        self.intervals: list[Interval] = []
        self.ends: list[float] = []
        start, end = 0, 0.0
        for keywords, part in itertools.groupby(rows):
            steps = range(start, start + len(list(part)))
            start = steps.stop
            end += share_within(process.timesteps, steps, process.steps, process.shift)
            self.intervals.append(Interval(steps, dict(keywords)))
            self.ends.append(end)
        self.start = float(generator(seed, 0, Use.DENSITY).random())

    def at(self, update: int) -> Interval:
        if not self.intervals:
            return Interval(None, {})
        drawn = (self.start + update * _STRIDE) % 1.0
        index = next((i for i, end in enumerate(self.ends) if drawn < end), len(self.ends) - 1)
        return self.intervals[index]
