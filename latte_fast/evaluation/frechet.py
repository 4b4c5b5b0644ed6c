"""Frechet distance between two sets of features, from moments in float64 that are merged from parts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# features per update, whatever the batch: so moments do not depend on the batch, and large updates are cheap
ROWS = 1024


@dataclass(frozen=True)
class Moments:
    """The moments of a set of features, in float64.

    Args:
        count: number of features.
        mean: mean of the features, (D,).
        scatter: sum of the outer products of the features' deviations from the mean, (D, D).
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @property
    def covariance(self) -> Tensor:
        """The scatter over the number of features, as in StyleGAN-V's protocol, not over one less."""
        return self.scatter / self.count


def moments(features: Tensor) -> Moments:
    """Computes the moments of features (N, D)."""
    if features.ndim != 2 or not len(features):
        raise ValueError(f"moments: features must be (N, D) with N at least 1, got {tuple(features.shape)}")
    x = features.detach().double()
    mean = x.mean(0)
    off = x - mean
    return Moments(len(x), mean, off.T @ off)


def merge(a: Moments, b: Moments) -> Moments:
    """Merges the moments of two sets. No large sums are subtracted from each other, so no digits are lost."""
    _same_width("merge", a, b)
    count = a.count + b.count
    step = b.mean - a.mean
    between = torch.outer(step, step) * (a.count * b.count / count)
    return Moments(count, a.mean + step * (b.count / count), a.scatter + b.scatter + between)


def moments_of(parts: Iterable[Tensor]) -> Moments:
    """Computes the moments of features that come as parts (n, D); the sizes of the parts change nothing."""
    total: Moments | None = None
    for rows in blocks(parts):
        part = moments(rows)
        total = part if total is None else merge(total, part)
    if total is None:
        raise ValueError("moments: features must be at least 1, got none")
    return total


def blocks(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yields the same features in the same order in float64, ROWS at a time, the rest last.

    Each part is copied and freed: small tensors that stay between batches of pixels would fragment memory, and 3 MB a
    clip could not be used again.
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
        # else this part would stay in memory while the next one is made
        del part, rows
    if block is not None and count < ROWS:
        yield block[:count]


def regroup(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """Yields the same rows in the same order, `rows` at a time, the rest last."""
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
    # the trace of sqrt(S1 S2) is the sum of the singular values of sqrt(S1) sqrt(S2): real and never negative
    shared = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    return max(0.0, float(apart + own - 2 * shared))


def _factor(covariance: Tensor) -> Tensor:
    """Returns F (D, r) with F F^T = S, from S's eigenvectors without those whose eigenvalue is rounding error.

    With fewer features than D most eigenvalues are: about 1e-16, whose square roots would count as 1e-8.
    """
    values, directions = torch.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return directions[:, kept] * values[kept].sqrt()


def _same_width(name: str, a: Moments, b: Moments) -> None:
    if len(a.mean) != len(b.mean):
        raise ValueError(f"{name}: features must have one width, got {len(a.mean)} and {len(b.mean)}")
