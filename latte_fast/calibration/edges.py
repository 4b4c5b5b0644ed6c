"""What each stretch of reused steps loses, and the shortest paths over computed steps.

A stretch begins at the run that computed every step, and ends at a computed step, by whose prediction x is mended. What
is left of its error is carried to x_0 by a sensitivity that is measured at a few steps (the cheap variant), or the rest
of the steps is run (the exact one). A stretch costs the model's two ends alone: the last step's prediction takes the
blocks' sum from the run.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from latte_fast.calibration.fits import PREDICTIONS, Fits
from latte_fast.calibration.paths import Path, Stretch, stretched
from latte_fast.calibration.trajectory import Trajectory
from latte_fast.diffusion.solvers import Sum
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.plan import Plan
from latte_fast.sampling.planned import run_plan

LONGEST = 14  # steps from one computed step to the next
BEFORE = 8  # steps from the one computed before to this, at most
PROBES = 6  # steps whose sensitivity is measured; the others are interpolated
OBJECTIVES: dict[str, Callable[[float, float], float]] = {
    "sum": lambda total, edge: total + edge,
    "squares": lambda total, edge: total + edge * edge,
    "largest": max,
}
Edge = tuple[int | None, int, int]  # the step computed before, the one that a stretch begins at, the one it ends at


class Edges:
    """Errors at x_0 of the stretches from i to j, for each step p computed before i.

    Args:
        trajectory: run that computed every step.
        gains: share of a deviation at each step that reaches x_0.
        tick: function called at each step that a stretch begins at.
    """

    def __init__(self, trajectory: Trajectory, gains: Mapping[int, float], tick: Callable[[], object] = lambda: None):
        self.trajectory, self.gains = trajectory, gains
        self.count = len(trajectory.plan.rows)
        self.cost: dict[Edge, float] = {}
        self.fits = Fits(trajectory)
        for i in range(self.count - 1):
            for p in (None, *range(max(0, i - BEFORE), i)):
                self.cost[p, i, i + 1] = 0.0
                for j, x in self.stretch(p, i).items():
                    self.cost[p, i, j] = gains[j] * rms(x - trajectory.bases[j])
            tick()

    def stretch(self, p: int | None, i: int) -> dict[int, Tensor]:
        """Returns the mended x at each step that a stretch from i could end at."""
        trajectory, rows = self.trajectory, self.trajectory.plan.rows
        last = min(i + LONGEST, self.count - 1)
        earlier = [i] if p is None else [i, p]
        base, predictions = trajectory.bases[i], trajectory.starts[i::-1][:PREDICTIONS]
        led = rows[i].predict
        x = led(base, predictions)
        out: dict[int, Tensor] = {}
        for j in range(i + 1, last + 1):
            if j > i + 1:
                ended = [self.called([j], x, j), *predictions][:PREDICTIONS]
                own = rows[j].correct or Sum(led.keep, (0.0, *led.weights))
                out[j] = self.fits.fitted(base, ended, trajectory.bases[j], own)(base, ended)
            again = (j - i - 1) % Stretch().every
            predictions = [predictions[0] if again else self.called(earlier, x, j), *predictions][:PREDICTIONS]
            base, led = x if (correct := rows[j].correct) is None else correct(base, predictions), rows[j].predict
            x = led(base, predictions)
        return out

    def called(self, earlier: list[int], x: Tensor, j: int) -> Tensor:
        """Returns the prediction at step j of the blocks' sums of earlier steps, the newest first."""
        reuse, denoiser, trajectory = StackReuse(), self.fits.denoiser, self.trajectory
        reuse.kept = [(float(at), trajectory.stacks[at]) for at in earlier]
        denoiser.reuse = reuse
        row = replace(trajectory.plan.rows[j], compute=False, order=len(earlier) - 1)
        with torch.no_grad(), reuse.attached(trajectory.net):
            return denoiser(x, row, trajectory.times[j], j)

    def path(self, computed: int, objective: str) -> Path | None:
        """Returns the best path over this many computed steps, None where stretches would be too long."""
        add, last = OBJECTIVES[objective], self.count - 1
        # by (p, i) after n computed steps, i the newest
        best: dict[tuple[int | None, int], tuple[float, list[int]]] = {(None, 0): (0.0, [0])}
        for left in range(computed - 2, -1, -1):
            after: dict[tuple[int | None, int], tuple[float, list[int]]] = {}
            for (p, i), (total, path) in best.items():
                for j in range(i + 1, min(i + LONGEST, last) + 1):
                    if not left <= last - j <= left * LONGEST:
                        continue
                    value = add(total, self.of(p, i, j))
                    if (i, j) not in after or value < after[i, j][0]:
                        after[i, j] = (value, [*path, j])
            best = after
        ends = [end for (_, i), end in best.items() if i == last]
        return stretched(min(ends, key=lambda end: end[0])[1]) if ends else None

    def of(self, p: int | None, i: int, j: int) -> float:
        """Returns the error of a stretch; steps computed long before count as if they were not there."""
        known = self.cost.get((p, i, j))
        return self.cost[None, i, j] if known is None else known


def sensitivity(trajectory: Trajectory, tick: Callable[[], object] = lambda: None) -> dict[int, float]:
    """Returns for each step how much of a deviation there reaches x_0, measured at some and interpolated."""
    count = len(trajectory.plan.rows)
    measured: dict[int, float] = {}
    for j in sorted({round(1 + (count - 2) * i / (PROBES - 1)) for i in range(PROBES)}):
        # x as it would be if the predictions before were older ones
        first = max(0, j - 3)
        x = trajectory.bases[first]
        for row in trajectory.plan.rows[first:j]:
            x = row.predict(x, [trajectory.starts[max(0, first - 1)]] * PREDICTIONS)
        if j <= 1:
            x = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(j)).to(x.device)
        end = run_plan(rest_of(trajectory.plan, j), None, trajectory.denoiser, x, lambda *_: tick())
        measured[j] = rms(end - trajectory.result) / max(rms(x - trajectory.x[j]), 1e-12)
    return {i: interpolated(measured, i) for i in range(count)}


def rest_of(plan: Plan, step: int) -> Plan:
    """Returns the end of a plan as a plan: its first row has no earlier predictions to be corrected by."""
    first = replace(plan.rows[step], correct=None)
    rest = plan.rows[step + 1 :]
    return replace(plan, rows=(first, *rest) if rest else (first, first), measured={})


def rms(x: Tensor) -> float:
    return float(x.double().pow(2).mean().sqrt())


def interpolated(values: Mapping[int, float], i: int) -> float:
    """Returns the value at i on the line between the logarithms of its neighbours."""
    below, above = max((k for k in values if k <= i), default=None), min((k for k in values if k >= i), default=None)
    if below is None or above is None or below == above:
        return values[above if below is None else below]
    share = (i - below) / (above - below)
    low, high = (math.log(max(values[k], 1e-12)) for k in (below, above))
    return math.exp(low + share * (high - low))
