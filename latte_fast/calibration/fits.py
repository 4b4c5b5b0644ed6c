"""Runs plans whose sums are fitted on the way, step by step, to the run that computed every step.

From the first reused step on, each step is taken by a sum of x and of the last predictions. A computed step shows how
far the reused steps before it went wrong, as its prediction is another than theirs led to expect. So there x is first
mended by such a sum, as a solver's corrector mends it. The weights are least squares over all samples: a few numbers
for each step, in closed form, which hold on other samples.
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

RIDGE = 1e-4  # pull towards the sampler's own sums, as a share of each part's size
PREDICTIONS = 3  # in a sum, those that were taken again counted once
HISTORY = 32  # latest predictions that a sum may reach back to
SETTLED = 3  # computed steps after a change at which it has to be ahead, or the run is given up


class State(NamedTuple):
    """All that the steps before leave to a step."""

    x: Tensor
    base: Tensor
    predictions: list[Tensor]  # the newest first
    kept: list[tuple[float, Tensor]]
    led: Sum  # the sum that made x out of the base
    error: float = 0.0  # mean logarithm of the deviation of x from the run that computed every step


class Fits:
    """Runs marks on the samples of a trajectory, and fits their sums.

    A run starts from the first step in which it differs from the run that was kept, and may be given up where it is
    behind that run soon after the last such step.

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
        made = self.run_ahead(marks, math.inf)
        assert made is not None
        return made

    def run_ahead(self, marks: Marks, settled: float = SETTLED) -> tuple[Plan, Tensor] | None:
        """Runs marks as `run` does; returns None where x is farther off than in the kept run.

        Args:
            marks: steps of a plan.
            settled: computed steps, after the last one that differs from the kept run, at which both are compared.
        """
        before, known, rows = self.kept
        differ = [i for i, (a, b) in enumerate(zip(marks, before, strict=False)) if a != b]
        first = differ[0] if differ else len(before)
        states, rows = known[: first + 1], rows[:first]
        waits = settled if before else math.inf
        reuse = StackReuse()
        reuse.kept = states[-1].kept
        self.denoiser.reuse = reuse
        self.denoiser.newest = states[-1].predictions[0] if states[-1].predictions else None
        with torch.no_grad(), reuse.attached(self.trajectory.net):
            for i in range(len(rows), len(marks)):
                row, state = self.step(marks, i, states[-1], reuse)
                rows.append(row)
                states.append(state)
                waits -= marks[i] == "C" and bool(differ) and i > differ[-1]
                if waits <= 0:
                    if state.error >= known[i + 1].error:
                        return None
                    waits = math.inf
        self.tried = (marks, states, rows)
        return replace(self.trajectory.plan, rows=tuple(rows)), states[-1].x

    def keep(self) -> None:
        """Lets later runs start from the steps of the last one."""
        self.kept = self.tried

    def step(self, marks: Marks, i: int, state: State, reuse: StackReuse) -> tuple[PlanRow, State]:
        trajectory = self.trajectory
        row = marked(trajectory.plan.rows[i], marks[i])
        start = self.denoiser(state.x, row, trajectory.times[i], i)
        predictions = [start, *state.predictions][:HISTORY]
        fits = self.sums and marks[: i + 1].strip("C") != ""
        if fits and row.compute and marks[i - 1] != "C":
            # unfitted, x stays as it is, or is mended as the sampler has it
            own = row.correct or Sum(state.led.keep, (0.0, *state.led.weights))
            row = replace(row, fitted_correct=self.fitted(state.base, predictions, trajectory.bases[i], own))
        correct = row.fitted_correct or row.correct
        base = state.x if correct is None else correct(state.base, predictions)
        after = trajectory.after(i)
        # a step that a repeated one follows needs no fit, as both take the same predictions
        if fits and marks[i + 1 : i + 2] != "-":
            row = replace(row, fitted_predict=self.fitted(base, predictions, after, row.predict))
        predict = row.fitted_predict or row.predict
        x = predict(base, predictions)
        error = float((x - after).pow(2).flatten(1).mean(1).clamp_min(1e-30).log().mean())
        return row, State(x, base, predictions, reuse.kept, predict, error)

    def fitted(self, base: Tensor, predictions: Sequence[Tensor], target: Tensor, own: Sum) -> Sum:
        """Returns the sum of a base and predictions that comes nearest to a target, pulled towards a given sum.

        Of predictions that were taken again, the newest place has the weight.
        """
        places = [i for i, x in enumerate(predictions) if all(x is not newer for newer in predictions[:i])]
        places = places[:PREDICTIONS]
        parts = torch.stack([x.flatten() for x in (base, *(predictions[i] for i in places))]).double()
        # the given sum's weights at the place of the same prediction
        given = [0.0] * len(predictions)
        for i, weight in enumerate(own.weights[: len(predictions)]):
            given[max(at for at in places if at <= i)] += weight
        start = torch.tensor([own.keep, *(given[i] for i in places)], dtype=torch.float64)
        left = target.flatten().double() - start.to(parts.device) @ parts
        normal, right = (parts @ parts.T).cpu(), (parts @ left).cpu()
        size = normal.diagonal().sqrt().clamp_min(1e-30)
        normal = normal / size[:, None] / size + self.ridge * torch.eye(len(parts), dtype=torch.float64)
        keep, *found = (start + torch.linalg.solve(normal, right / size) / size).tolist()
        weights = [0.0] * (places[-1] + 1)
        for i, weight in zip(places, found, strict=True):
            weights[i] = weight
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
