"""Trials of plans on a few samples: a plan is run from the first step in which it differs from the best one so far."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from latte_fast.calibration.reuse_errors import Trajectory
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.plan import Plan


class State(NamedTuple):
    """All that the steps before leave to a step."""

    x: Tensor
    base: Tensor
    predictions: list[Tensor]  # the newest first
    kept: list[tuple[float, Tensor]]
    difference: Tensor | None


class Trials:
    """Runs plans on the first samples of a trajectory.

    Args:
        trajectory: run that computed every step.
        count: number of samples.
    """

    def __init__(self, trajectory: Trajectory, count: int):
        self.net, self.times, self.count = trajectory.net, trajectory.times, count
        self.denoiser = trajectory.denoiser.of_first(count)
        self.states = [State(trajectory.noise[:count], trajectory.noise[:count], [], [], None)]
        self.plan: Plan | None = None  # whose steps left the states
        self.tried: tuple[Plan, list[State]] | None = None

    def run(self, plan: Plan) -> Tensor:
        """Returns the latents of a plan."""
        first = 0
        if self.plan is not None:
            pairs = zip(plan.rows, self.plan.rows, strict=True)
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(plan.rows))
        states = self.states[: first + 1]
        reuse = StackReuse()
        self.denoiser.reuse = reuse
        state = states[-1]
        reuse.kept, self.denoiser.difference = state.kept, state.difference
        with torch.no_grad(), reuse.attached(self.net):
            for i in range(len(states) - 1, len(plan.rows)):
                row = plan.rows[i]
                start = self.denoiser(state.x, row, self.times[i], i)
                predictions = [start, *state.predictions][:3]
                base = state.x if row.correct is None else row.correct(state.base, predictions)
                x = row.predict(base, predictions)
                state = State(x, base, predictions, reuse.kept, self.denoiser.difference)
                states.append(state)
        self.tried = plan, states
        return state.x

    def keep(self) -> None:
        """Lets later plans start from the steps of the last one."""
        assert self.tried is not None
        self.plan, self.states = self.tried


def improved(
    start: Plan,
    moves: Callable[[Plan], list[Plan]],
    value: Callable[[Plan], float],
    keep: Callable[[], None],
    runs: int,
    enough: float = math.inf,
) -> Plan:
    """Takes the first move that raises a plan's measured value, again and again, within a number of runs.

    It ends as soon as the value is enough.
    """
    best, reached = start, value(start)
    keep()
    waiting, seen = moves(best), {str(start)}
    while runs > 0 and waiting and reached < enough:
        plan = waiting.pop(0)
        if str(plan) in seen:
            continue
        seen.add(str(plan))
        runs -= 1
        found = value(plan)
        if found > reached:
            best, reached, waiting = plan, found, moves(plan)
            keep()
    return best
