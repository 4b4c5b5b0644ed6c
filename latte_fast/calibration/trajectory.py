"""One run that computes every step, with all that plans are fitted to and judged by."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from latte_fast.runs.plan import Plan
from latte_fast.sampling.planned import Denoiser, run_plan


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

    def after(self, i: int) -> Tensor:
        """Returns what row i leads to."""
        return self.x[i + 1] if i + 1 < len(self.x) else self.result
