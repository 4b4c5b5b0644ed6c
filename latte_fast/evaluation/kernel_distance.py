"""Squared maximum mean discrepancy of two sets of features under a polynomial kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latte_fast.evaluation.score import Rows, Score, replicates, resampled, rng_of


@dataclass(frozen=True)
class Kernel:
    """The kernel (x y / D + offset) ** degree of features of width D."""

    degree: int
    offset: float

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + self.offset) ** self.degree


# of the kernel inception distance, whose form with clips is the kernel video distance
CUBIC = Kernel(3, 1.0)
# of JEDi, which multiplies the biased distance by 100
SQUARE = Kernel(2, 0.0)
JEDI_SCALE = 100.0


def mmd(x: Tensor, y: Tensor, kernel: Kernel = CUBIC, biased: bool = False) -> float:
    """Mean k(x, x') + mean k(y, y') - 2 mean k(x, y) of x (N, D) and y (M, D).

    Without bias the means leave out the pairs of a row with itself, so that the value may be below 0.
    """
    _check("mmd", x, y)
    x, y = x.double(), y.double()
    within = 0.0
    for rows in (x, y):
        own = kernel(rows, rows)
        n = len(rows)
        total = own.sum() if biased else own.sum() - own.diagonal().sum()
        within += float(total) / (n * n if biased else n * (n - 1))
    return within - 2 * float(kernel(x, y).mean())


def kernel_distance(samples: Tensor, real: Tensor, settings: dict[str, int]) -> Score:
    """Returns mean and standard deviation of the unbiased MMD of `subsets` pairs of random subsets of `subset` rows.

    `values` has the standard error of the mean. As subsets overlap, it is what more subsets would change, and not what
    other samples would, for which there is the bootstrap's interval.
    """
    _check("kernel_distance", samples, real)
    size, count = subset_size(settings, len(samples), len(real)), settings["subsets"]
    rng = rng_of(settings)
    values = [mmd(_drawn(samples, size, rng), _drawn(real, size, rng)) for _ in range(count)]
    found = torch.tensor(values, dtype=torch.float64)
    spread = float(found.std(correction=0))
    error = float(found.std(correction=1)) / count**0.5 if count > 1 else float("nan")
    value = float(found.mean())
    again = replicates(settings, lambda draw: mmd(resampled(samples, draw), resampled(real, draw)))
    return Score(value, spread, {"standard_error": error, "subset": size}).bounded(again)


def jedi_distance(samples: Tensor, real: Tensor, settings: dict[str, int]) -> Score:
    """Returns 100 times the biased MMD under (x y / D) ** 2, which JEDi takes of V-JEPA's features."""
    _check("jedi_distance", samples, real)

    def distance(a: Tensor, b: Tensor) -> float:
        return JEDI_SCALE * mmd(a, b, SQUARE, biased=True)

    again = replicates(settings, lambda draw: distance(resampled(samples, draw), resampled(real, draw)))
    return Score(distance(samples, real)).bounded(again)


def subset_size(settings: dict[str, int], *counts: int) -> int:
    """Returns the rows of a subset: those asked for, else 1000 or half of the smaller set, whichever is less."""
    fewest, asked = min(counts), settings.get("subset", 0)
    if asked > fewest:
        raise ValueError(f"evaluate: subset must be at most the {fewest} rows of the smaller set, got {asked}")
    return asked or max(2, min(1000, fewest // 2))


def _drawn(rows: Rows, size: int, rng: torch.Generator) -> Rows:
    return rows[torch.randperm(len(rows), generator=rng)[:size]]


def _check(name: str, x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"{name}: features must be (N, D) and (M, D) with N and M at least 2, got {shapes}")
