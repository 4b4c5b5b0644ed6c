"""A metric's value with what tells how sure it is: spread, further values, and a bootstrap interval."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Rows = Tensor
# share of replicates inside an interval
LEVEL = 0.95


@dataclass(frozen=True)
class Score:
    """What a metric comes to.

    Args:
        value: the number.
        spread: standard deviation over splits or subsets; None where a metric has none.
        values: further numbers by name.
        interval: bounds of the 95 % bootstrap interval; None where no replicates were asked for.
    """

    value: float
    spread: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    def bounded(self, again: list[float]) -> "Score":
        """Adds the interval of replicates of the value.

        The replicates are moved so that their mean is the value: rows that are drawn twice push every distance up.
        """
        if not again:
            return self
        found = torch.tensor(again, dtype=torch.float64)
        tail = (1 - LEVEL) / 2
        low, high = (found - found.mean() + self.value).quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
        return replace(self, interval=(low, high))


def rng_of(settings: dict[str, int], stream: int = 0) -> torch.Generator:
    """Returns a generator that follows from the measurement's seed and the number of a use."""
    return torch.Generator().manual_seed(settings.get("seed", 0) * 1_000_003 + stream)


def replicates(settings: dict[str, int], value: Callable[[torch.Generator], float]) -> list[float]:
    """Returns `settings["bootstrap"]` values, each of rows that `value` draws by the generator it is given."""
    rng = rng_of(settings, 1)
    return [value(rng) for _ in range(settings.get("bootstrap", 0))]


def resampled(rows: Rows, rng: torch.Generator) -> Rows:
    """Draws as many rows as there are, with repetition."""
    return rows[torch.randint(len(rows), (len(rows),), generator=rng)]


def mean_score(rows: Tensor, settings: dict[str, int]) -> Score:
    """Returns the mean of one number a clip (N, 1), its standard deviation over clips, and its bootstrap interval."""
    column = rows.double().flatten()
    again = replicates(settings, lambda draw: float(resampled(column, draw).mean()))
    return Score(float(column.mean()), float(column.std(correction=0))).bounded(again)
