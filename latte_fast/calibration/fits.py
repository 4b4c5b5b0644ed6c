"""Runs plans whose sums are fitted on the way, at each computed step, to the run that computed every step.

A computed step shows how far the reused steps before it went wrong, as its prediction is another than theirs led to
expect. So x is mended by a sum of it and of the predictions before, as a solver's corrector mends it, and the step
itself is taken by such a sum as well. The weights are least squares over all samples: a few numbers for each computed
step, in closed form, which hold on other samples.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from latte_fast.calibration.paths import Marks
from latte_fast.calibration.trajectory import Trajectory
from latte_fast.diffusion.solvers import Sum
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.plan import Plan, PlanRow

RIDGE = 1e-3  # pull towards the sampler's own sums, as a share of each part's size
PREDICTIONS = 3  # in a sum


class State(NamedTuple):
    """All that the steps before leave to a step."""

    x: Tensor
    base: Tensor
    predictions: list[Tensor]  # the newest first
    kept: list[tuple[float, Tensor]]
    led: Sum  # the sum that made x out of the base


class Fits:
    """Runs marks on the samples of a trajectory, and fits their sums.

    A run starts from the first step in which it differs from the run that was kept.

    Args:
        trajectory: run that computed every step.
        sums: whether sums are fitted; without, they are the sampler's.
        ridge: pull towards the sampler's own sums.
    """

    def __init__(self, trajectory: Trajectory, sums: bool = True, ridge: float = RIDGE):
        self.trajectory, self.sums, self.ridge = trajectory, sums, ridge
        noise = trajectory.noise
        self.denoiser = trajectory.denoiser.of_first(len(noise))
        self.kept: tuple[Marks, list[State], list[PlanRow]] = ("", [State(noise, noise, [], [], Sum(1.0, ()))], [])
        self.tried = self.kept

    def run(self, marks: Marks) -> tuple[Plan, Tensor]:
        """Returns the plan with its fitted numbers, and the latents that it makes."""
        before, states, rows = self.kept
        first = next((i for i, (a, b) in enumerate(zip(marks, before, strict=False)) if a != b), len(before))
        states, rows = states[: first + 1], rows[:first]
        reuse = StackReuse()
        reuse.kept = states[-1].kept
        self.denoiser.reuse = reuse
        self.denoiser.newest = states[-1].predictions[0] if states[-1].predictions else None
        with torch.no_grad(), reuse.attached(self.trajectory.net):
            for i in range(len(rows), len(marks)):
                row, state = self.step(marks, i, states[-1], reuse)
                rows.append(row)
                states.append(state)
        self.tried = (marks, states, rows)
        return replace(self.trajectory.plan, rows=tuple(rows)), states[-1].x

    def keep(self) -> None:
        """Lets later runs start from the steps of the last one."""
        self.kept = self.tried

    def step(self, marks: Marks, i: int, state: State, reuse: StackReuse) -> tuple[PlanRow, State]:
        trajectory = self.trajectory
        row = marked(trajectory.plan.rows[i], marks[i])
        start = self.denoiser(state.x, row, trajectory.times[i], i)
        predictions = [start, *state.predictions][:PREDICTIONS]
        fits = self.sums and row.compute and marks[:i].strip("C") != ""
        if fits and marks[i - 1] != "C":
            # unfitted, x stays as it is, or is mended as the sampler has it
            own = row.correct or Sum(state.led.keep, (0.0, *state.led.weights))
            row = replace(row, fitted_correct=self.fitted(state.base, predictions, trajectory.bases[i], own))
        correct = row.fitted_correct or row.correct
        base = state.x if correct is None else correct(state.base, predictions)
        if fits:
            row = replace(row, fitted_predict=self.fitted(base, predictions, trajectory.after(i), row.predict))
        predict = row.fitted_predict or row.predict
        return row, State(predict(base, predictions), base, predictions, reuse.kept, predict)

    def fitted(self, base: Tensor, predictions: Sequence[Tensor], target: Tensor, own: Sum) -> Sum:
        """Returns the sum of a base and predictions that comes nearest to a target, pulled towards a given sum."""
        parts = torch.stack([x.flatten() for x in (base, *predictions)]).double()
        given = [own.keep, *own.weights, *[0.0] * len(parts)][: len(parts)]
        start = torch.tensor(given, dtype=torch.float64)
        left = target.flatten().double() - start.to(parts.device) @ parts
        normal, right = (parts @ parts.T).cpu(), (parts @ left).cpu()
        size = normal.diagonal().sqrt().clamp_min(1e-30)
        normal = normal / size[:, None] / size + self.ridge * torch.eye(len(parts), dtype=torch.float64)
        keep, *weights = (start + torch.linalg.solve(normal, right / size) / size).tolist()
        return Sum(keep, tuple(weights))


def marked(row: PlanRow, letter: str) -> PlanRow:
    """Returns a step's row as a letter of marks says."""
    if letter == "C":
        return row
    if letter == "-":
        return replace(row, compute=False, repeat=True)
    return replace(row, compute=False, order=int(letter))


def each_psnr(a: Tensor, b: Tensor) -> Tensor:
    """Returns the PSNR between each two films in [-1, 1], (B, ...)."""
    error = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).double().pow(2).flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-20))


def psnr(a: Tensor, b: Tensor) -> float:
    """Returns the mean over samples of the PSNR between films in [-1, 1], (B, ...)."""
    return float(each_psnr(a, b).mean())


def better(now: Tensor, before: Tensor, deviations: float = 0.0) -> bool:
    """Returns whether a mean rose by more than so many standard errors of the samples' differences."""
    gain = (now - before).double()
    error = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return float(gain.mean()) > deviations * error
