"""What reuse costs: one run that computes every step, and the error of every stretch of steps that is reused.

A stretch is measured at the price of the model's two ends, and its error is carried to x_0 by a measured sensitivity.
The best path over computed steps is then a shortest path, improved by adding its errors up with their signs.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.plan import Plan, PlanRow
from latte_fast.sampling.planned import Denoiser, run_plan

LONGEST = 9  # steps from one computed step to the next
HIGHEST = 2  # order of extrapolation
FITTED = 3  # stands for an order: up to three sums with weights that are fitted to the trajectory
ORDERS = (*range(HIGHEST + 1), FITTED)
COORDINATES = 1 << 16  # of a sum that stand for it where weights are fitted
PROJECTED = 256  # numbers that stand for an error
UNSIGNED = 0.2  # share of a path's error that adds up as if it had no signs
PROBES = 6  # steps whose sensitivity is measured; the others are interpolated
OBJECTIVES: dict[str, Callable[[float, float], float]] = {
    "sum": lambda total, edge: total + edge,
    "squares": lambda total, edge: total + edge * edge,
    "largest": max,
}
Path = list[tuple[int, int]]  # computed steps, each with the order of the reuse that follows it


class Trajectory:
    """A run that computed every step, with all that reuse could draw from."""

    def __init__(self, plan: Plan, net: nn.Module, denoiser: Denoiser, noise: Tensor, tick: Callable[[], object]):
        self.plan, self.net, self.denoiser, self.noise = plan, net, denoiser, noise
        self.x: list[Tensor] = []
        self.starts: list[Tensor] = []
        self.stacks: list[Tensor] = []

        def seen(number: int, x: Tensor, start: Tensor) -> None:
            self.x.append(x.clone())
            self.starts.append(start)
            self.stacks.append(denoiser.reuse.kept[0][1])
            tick()

        self.result = run_plan(plan, net, denoiser, noise, seen)
        self.times = torch.tensor([row.time for row in plan.rows]).to(noise.device)
        self.bases = self._bases()
        flat = torch.stack([picked(stack) for stack in self.stacks]).double()
        self.products = (flat @ flat.T).numpy()  # of the sums

    def fitted(self, earlier: Sequence[int], step: int) -> tuple[float, ...]:
        """Returns the weights by which the sums of earlier steps come nearest to a step's."""
        at = list(earlier)
        normal, right = self.products[np.ix_(at, at)], self.products[at, step]
        return tuple(float(weight) for weight in np.linalg.lstsq(normal, right, rcond=1e-9)[0])

    def of_first(self, count: int) -> "Trajectory":
        """Returns the trajectory of the first samples alone."""
        samples = len(self.noise)
        if count >= samples:
            return self
        out = copy.copy(self)
        out.denoiser, out.noise, out.result = self.denoiser.of_first(count), self.noise[:count], self.result[:count]
        out.x, out.starts = ([x[:count] for x in kind] for kind in (self.x, self.starts))
        halves = len(self.stacks[0]) // samples
        out.stacks = [stack.unflatten(0, (halves, samples))[:, :count].flatten(0, 1) for stack in self.stacks]
        out.bases = [base[:count] for base in self.bases]
        return out

    def _bases(self) -> list[Tensor]:
        """Returns what each row's `predict` starts from: x, or for a corrected row x mended by its prediction."""
        out: list[Tensor] = []
        for i, row in enumerate(self.plan.rows):
            out.append(self.x[i] if row.correct is None else row.correct(out[i - 1], self.starts[i::-1]))
        return out

    def without_computing(self, earlier: Sequence[int], order: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """Reuses the stacks of steps `earlier` (newest first) after the newest; yields (j, x_j) up to `last`.

        x_j is what step j would start from if it were the next to be computed.
        """
        first = earlier[0]
        reuse = StackReuse()
        reuse.kept = [(float(i), self.stacks[i]) for i in earlier]
        denoiser, kept = self.denoiser, self.denoiser.reuse
        rows = self.plan.rows
        base, predictions = self.bases[first], self.starts[first::-1][:3]
        x = rows[first].predict(base, predictions)
        denoiser.reuse = reuse
        try:
            with torch.no_grad(), reuse.attached(self.net):
                for j in range(first + 1, last):
                    row = reused(self, rows[j], earlier, order, j)
                    predictions = [denoiser(x, row, self.times[j], j), *predictions][:3]
                    base = x if row.correct is None else row.correct(base, predictions)
                    x = row.predict(base, predictions)
                    yield j + 1, x
        finally:
            denoiser.reuse = kept

    def sensitivity(self, tick: Callable[[], object]) -> list[float]:
        """Returns for each step how much of a deviation there reaches x_0, measured at some and interpolated."""
        count = len(self.plan.rows)
        at = sorted({round(1 + (count - 2) * i / (PROBES - 1)) for i in range(PROBES)})
        gains: dict[int, float] = {}
        for j in at:
            first = max(0, j - 3)
            off = [x for i, x in self.without_computing([first], 0, j) if i == j]
            start = off[0] if off else self.x[j] + 0.01 * torch.randn_like(self.x[j])
            rest = replace_rows(self.plan, self.plan.rows[j:])
            end = run_plan(rest, self.net, self.denoiser, start, lambda *_: tick())
            gains[j] = rms(end - self.result) / max(rms(start - self.x[j]), 1e-12)
        return [interpolated(gains, i) for i in range(count)]


def reused(trajectory: Trajectory | None, row: PlanRow, earlier: Sequence[int], order: int, step: int) -> PlanRow:
    """Returns a step's row as reused after computed steps, the newest first; orders that these forbid are lowered."""
    if order == FITTED and len(earlier) > 1:
        assert trajectory is not None
        weights = trajectory.fitted(earlier[: HIGHEST + 1], step)
        return replace(row, compute=False, order=len(weights) - 1, weights=weights)
    return replace(row, compute=False, order=min(order if order < FITTED else 0, len(earlier) - 1))


def picked(x: Tensor) -> Tensor:
    """Returns some of a tensor's values, spread evenly, as a vector on the CPU."""
    flat = x.flatten()
    return flat[:: max(1, flat.numel() // COORDINATES)].float().cpu()


def replace_rows(plan: Plan, rows: Sequence[PlanRow]) -> Plan:
    """Returns the end of a plan as a plan: its first row has no earlier predictions to be corrected by."""
    first = replace(rows[0], correct=None)
    return replace(plan, rows=(first, *rows[1:]) if len(rows) > 1 else (first, first), measured={})


def rms(x: Tensor) -> float:
    return float(x.double().pow(2).mean().sqrt())


def interpolated(values: dict[int, float], i: int) -> float:
    """Returns the value at i on the line between the logarithms of its neighbours."""
    below, above = max((k for k in values if k <= i), default=None), min((k for k in values if k >= i), default=None)
    if below is None or above is None or below == above:
        return values[above if below is None else below]
    share = (i - below) / (above - below)
    low, high = (math.log(max(values[k], 1e-12)) for k in (below, above))
    return math.exp(low + share * (high - low))


class Edges:
    """Error at x_0 of computing i, reusing up to j, for each step p computed before i; and the best order for it."""

    def __init__(self, trajectory: Trajectory, gains: Sequence[float], tick: Callable[[], object]):
        self.count = len(trajectory.plan.rows)
        self.cost: dict[tuple[int | None, int, int], tuple[float, int]] = {}
        # the errors themselves, projected at random, so that a path's errors can be added up with their signs
        self.error: dict[tuple[int | None, int, int, int], np.ndarray] = {}
        project = projection(trajectory.noise)
        for i in range(self.count - 1):
            last = min(i + LONGEST, self.count - 1)
            for p in (None, *range(max(0, i - LONGEST), i)):
                self.cost[p, i, i + 1] = (0.0, 0)
                for order in ORDERS:
                    earlier = self.earlier(p, i, order)
                    if earlier is None:
                        continue
                    for j, x in trajectory.without_computing(earlier, order, last):
                        off = gains[j] * (x - trajectory.x[j])
                        error = rms(off)
                        self.error[p, i, j, order] = project(off)
                        if error < self.cost.get((p, i, j), (math.inf, 0))[0]:
                            self.cost[p, i, j] = (error, order)
            tick()

    def earlier(self, p: int | None, i: int, order: int) -> list[int] | None:
        """Returns the computed steps that an order needs; the one before p is taken at p's distance."""
        if order == 0:
            return [i] if p is None else None  # with p as without: filled in by `of`
        if p is None or (order == 2 and 2 * p - i < 0):
            return None
        return [i, p] if order == 1 or 2 * p < i else [i, p, 2 * p - i]

    def of(self, p: int | None, i: int, j: int) -> tuple[float, int]:
        plain = self.cost[None, i, j]
        return min(self.cost.get((p, i, j), plain), plain)

    @property
    def fewest(self) -> int:
        return fewest_computed(self.count)

    def path(self, computed: int, objective: str) -> Path:
        """Returns (step, order of what follows it) for the best path over this many computed steps."""
        add = OBJECTIVES[objective]
        last = self.count - 1
        # best[(p, i)] after n computed steps, i the newest
        best: dict[tuple[int | None, int], tuple[float, Path]] = {(None, 0): (0.0, [])}
        for n in range(1, computed):
            after: dict[tuple[int | None, int], tuple[float, Path]] = {}
            for (p, i), (total, path) in best.items():
                for j in range(i + 1, min(i + LONGEST, last) + 1):
                    # the rest must reach the last step
                    left = computed - 1 - n
                    if not left <= last - j <= left * LONGEST:
                        continue
                    edge, order = self.of(p, i, j)
                    value = add(total, edge)
                    if (i, j) not in after or value < after[i, j][0]:
                        after[i, j] = (value, [*path, (i, order)])
            best = after
        if not best:
            raise ValueError(f"calibrate: computed must be at least {self.fewest} steps, got {computed}")
        ends = [(value, [*path, (i, 0)]) for (_, i), (value, path) in best.items() if i == last]
        return min(ends, key=lambda end: end[0])[1]

    def predicted(self, path: Path) -> float:
        """Returns a path's error at x_0: its stretches' errors added up, a share of them as if they had no signs."""
        total, squares = np.zeros(PROJECTED, np.float32), 0.0
        for n, (i, order) in enumerate(path[:-1]):
            j = path[n + 1][0]
            if j == i + 1:
                continue
            if j - i > LONGEST or allowed(order, n) != order:
                return math.inf
            p = None if order == 0 else path[n - 1][0]
            error = self.error.get((p, i, j, order))
            if error is None:
                return math.inf
            total += error
            squares += float(error @ error)
        return math.sqrt((1 - UNSIGNED) * float(total @ total) + UNSIGNED * squares)

    def improved(self, path: Path, rounds: int = 40) -> tuple[float, Path]:
        """Moves a path's steps and changes its orders, one at a time, as long as the predicted error falls."""
        best, value = list(path), self.predicted(path)
        for _ in range(rounds):
            found = min(((self.predicted(c), c) for c in self.neighbours(best)), key=lambda f: f[0])
            if not found[0] < value:
                break
            value, best = found
        return value, best

    def by_promise(self, path: Path) -> list[Path]:
        """Returns the path's neighbours, the lowest predicted error first."""
        return sorted(self.neighbours(path), key=self.predicted)

    def neighbours(self, path: Path) -> Iterator[Path]:
        steps = {i for i, _ in path}
        for n, (i, order) in enumerate(path[:-1]):
            for other in ORDERS:
                if other != order and allowed(other, n) == other:
                    yield [*path[:n], (i, other), *path[n + 1 :]]
            if n == 0:
                continue
            for to in range(max(1, i - 3), min(self.count - 1, i + 4)):
                if to not in steps:
                    for other in (other for other in ORDERS if allowed(other, n) == other):
                        yield in_order([*path[:n], (to, other), *path[n + 1 :]])


def fewest_computed(steps: int) -> int:
    """Returns the number of computed steps below which a stretch would be too long."""
    return math.ceil((steps - 1) / LONGEST) + 1


def in_order(path: Path) -> Path:
    """Returns a path sorted by step, with orders that the steps before allow."""
    return [(i, allowed(order, n)) for n, (i, order) in enumerate(sorted(path))]


def allowed(order: int, before: int) -> int:
    """Returns the order, or the next that so many computed steps before the newest allow."""
    return min(order, before) if order < FITTED else order if before else 0


def projection(like: Tensor) -> Callable[[Tensor], np.ndarray]:
    """Returns a random projection to PROJECTED numbers that keeps the root mean square of a tensor like this."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (like.numel(),), generator=generator).float().mul_(2).sub_(1)
    bins = torch.randint(0, PROJECTED, (like.numel(),), generator=generator)
    signs, bins = signs.to(like.device), bins.to(like.device)

    def project(x: Tensor) -> np.ndarray:
        out = torch.zeros(PROJECTED, device=x.device).index_add_(0, bins, x.flatten().float() * signs)
        return (out / math.sqrt(x.numel())).cpu().numpy()

    return project
