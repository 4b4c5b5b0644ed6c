"""Frechet distance between two sets of features: their moments in float64, put together from any parts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# features taken in at once, however they arrive: moments do not depend on the batch, and large updates are cheap
ROWS = 1024


@dataclass(frozen=True)
class Moments:
    """Of a set of features, all in float64.

    Args:
        count: how many.
        mean: (D,).
        scatter: (D, D), the sum over them of the outer products of what they are off the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @property
    def covariance(self) -> Tensor:
        """Divided by the number of features, as StyleGAN-V's protocol has it, not by one less."""
        return self.scatter / self.count


def moments(features: Tensor) -> Moments:
    """Of (N, D) features."""
    if features.ndim != 2 or not len(features):
        raise ValueError(f"moments: features must be (N, D) with N at least 1, got {tuple(features.shape)}")
    x = features.detach().double()
    mean = x.mean(0)
    off = x - mean
    return Moments(len(x), mean, off.T @ off)


def merge(a: Moments, b: Moments) -> Moments:
    """Of two sets taken together. It never subtracts large sums from each other, so parts cost no digits."""
    _same_width("merge", a, b)
    count = a.count + b.count
    step = b.mean - a.mean
    between = torch.outer(step, step) * (a.count * b.count / count)
    return Moments(count, a.mean + step * (b.count / count), a.scatter + b.scatter + between)


def moments_of(parts: Iterable[Tensor]) -> Moments:
    """Of all features that come, (n, D) at a time; how they are cut into parts changes nothing."""
    total: Moments | None = None
    for rows in blocks(parts):
        part = moments(rows)
        total = part if total is None else merge(total, part)
    if total is None:
        raise ValueError("moments: features must be at least 1, got none")
    return total


def blocks(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same features in the same order in float64, ROWS at a time, the rest last.

    Each part is copied and let go: small tensors that stay between batches of pixels keep the freed memory around them
    from being used again, 3 MB a clip.
    """
    block: Tensor | None = None
    count = 0
    for part in parts:
        if part.ndim != 2 or (block is not None and part.shape[1] != block.shape[1]):
            width = "D" if block is None else block.shape[1]
            raise ValueError(f"moments: features must be (n, {width}) each time, got {tuple(part.shape)}")
        rows = part.detach()
        while len(rows):
            if block is None or count == ROWS:
                block, count = rows.new_empty((ROWS, rows.shape[1]), dtype=torch.float64), 0
            took = min(ROWS - count, len(rows))
            block[count : count + took] = rows[:took]
            rows, count = rows[took:], count + took
            if count == ROWS:
                yield block
        # held here, it would outlive the next part's making
        del part, rows
    if block is not None and count < ROWS:
        yield block[:count]


def regroup(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """The same rows in the same order, `rows` at a time, the rest last."""
    held: list[Tensor] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        while count >= rows:
            together = torch.cat(held)
            yield together[:rows]
            held, count = [together[rows:]], count - rows
    if count:
        yield torch.cat(held)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)), at least 0."""
    _same_width("frechet_distance", a, b)
    for name, x in (("a", a), ("b", b)):
        if not (x.mean.isfinite().all() and x.scatter.isfinite().all()):
            raise ValueError(f"frechet_distance: moments must be finite, got others in {name}")
    apart = (a.mean - b.mean).square().sum()
    own = a.covariance.trace() + b.covariance.trace()
    # sqrt(S1 S2) has the trace that sqrt(S1) sqrt(S2) has as its sum of singular values: real and never negative
    shared = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    return max(0.0, float(apart + own - 2 * shared))


def _factor(covariance: Tensor) -> Tensor:
    """(D, r) F with F F^T = S: S's own directions, without those that are nothing but rounding.

    Where there are fewer features than D most of them are; the roots of their 1e-16 would be 1e-8.
    """
    values, directions = torch.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return directions[:, kept] * values[kept].sqrt()


def _same_width(name: str, a: Moments, b: Moments) -> None:
    if len(a.mean) != len(b.mean):
        raise ValueError(f"{name}: features must have one width, got {len(a.mean)} and {len(b.mean)}")
