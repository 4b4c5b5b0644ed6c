"""StepCache: a plan for a model that another library's loop calls, by diffusers' conventions for caches."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.modules.caching import Cached, Caching, noisiest_of
from latte_fast.modules.residual import Pending
from latte_fast.runs.plan import Plan, load_plan, weights_digest


class StepCache:
    """Leaves a model's blocks out at the steps that a plan reuses: `model.enable_cache(latte_fast.StepCache(plan))`.

    The model counts its forwards: the first of a run is the plan's first step. Guidance, its scale and the scheduler
    stay the caller's, who samples with as many steps as the plan has. Each call reads its time step on the host, to be
    sure that it is the plan's; `latte_fast.sample(plan=...)` follows a plan without waiting for the device.

    Args:
        plan: plan, or file of one, that `latte-fast calibrate` made for this model.
    """

    def __init__(self, plan: Plan | str | Path):
        self.plan = plan if isinstance(plan, Plan) else load_plan(plan)
        halves = {row.guidance for row in self.plan.rows}
        if len(halves) > 1 or halves == {"kept"}:
            rule = "the same at every step, as the caller of a cached model guides"
            raise ValueError(f"StepCache: guidance of the plan must be {rule}, got {', '.join(sorted(halves))}")
        if any(row.side is not None for row in self.plan.rows):
            raise ValueError("StepCache: plan must be of a model with one density; latte_fast.sample follows this one")
        if self.plan.precisions != ["16"]:
            raise ValueError("StepCache: plan must be in 16 bits at every step; latte_fast.sample follows this one")
        if self.plan.fitted_sums or any(row.repeat for row in self.plan.rows):
            rule = "the caller's, without repeated predictions: latte-fast calibrate --loop any makes such plans"
            raise ValueError(f"StepCache: the plan's solver must be {rule}; latte_fast.sample follows this one")
        if self.plan.computed == len(self.plan.rows):
            raise ValueError(f"StepCache: plan must reuse a step, got {self.plan.summary()}")

    def start_steps(self, model: Caching) -> "StepCounter":
        """Returns what counts a model's steps; raises ValueError with the reason where the plan is not for it."""
        assert isinstance(model, nn.Module)
        if model.training:
            raise ValueError("StepCache: the model must be in evaluation: call model.eval() first")
        made = self.plan.made_for.get("weights")
        if made is not None and made != weights_digest(model):
            raise ValueError("StepCache: the model's weights must be those that the plan was made for; calibrate again")
        return StepCounter(self.plan, tokens_of(self.plan, model))


def tokens_of(plan: Plan, model: Any) -> tuple[int, int] | None:
    """Returns the frames and tokens a frame that a plan was made for, None where it does not say."""
    shape = plan.made_for.get("shape")
    if shape is None:
        return None
    frames, _, height, width = shape
    config = model.config
    patch, extra = config.patch_size, getattr(config, "extra_tokens", 0)
    return frames // getattr(config, "patch_frames", 1), height * width // patch**2 + extra


@dataclass
class _Run:
    """The steps of one context: how many are done, and the sums that are kept."""

    step: int = 0
    kept: list[tuple[float, Tensor]] = field(default_factory=list)


class StepCounter(Cached):
    """Counts the forwards of each context, and computes or reuses the blocks as the plan's rows say in turn."""

    def __init__(self, plan: Plan, tokens: tuple[int, int] | None):
        self.plan, self.tokens = plan, tokens
        self.runs: dict[str | None, _Run] = {}
        super().__init__()

    @property
    def kept(self) -> list[tuple[float, Tensor]]:
        return self.runs.setdefault(self.context, _Run()).kept

    @kept.setter
    def kept(self, value: list[tuple[float, Tensor]]) -> None:
        self.runs.setdefault(self.context, _Run()).kept = value

    def reset(self) -> None:
        self.runs.clear()

    def begin(self, time: Tensor) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("StepCache: gradients must be off, as blocks that are left out have none")
        rows, run = self.plan.rows, self.runs.setdefault(self.context, _Run())
        now = noisiest_of(time)
        if run.step and not self.near(run.step, now) and self.near(0, now):
            run.step = 0  # the run before was not finished
        if not self.near(run.step, now):
            rule = f"about {rows[run.step].time:g} at step {run.step} of the plan's {len(rows)}"
            more = "the scheduler must take as many steps as the plan, from noise to sample"
            run.step = 0
            raise ValueError(f"StepCache: the time step must be {rule}, got {now:g}; {more}")
        row = rows[run.step]
        if row.compute:
            self.compute(run.step)
        else:
            self.reuse(run.step, row.order, row.weights)
        run.step = (run.step + 1) % len(rows)

    def near(self, step: int, time: float) -> bool:
        """Whether a time step is less than a step away from that of a row: schedulers begin at different ends."""
        times = [row.time for row in self.plan.rows]
        gaps = [abs(a - b) for a, b in itertools.pairwise(times)]
        return abs(time - times[step]) < max(gaps[max(step - 1, 0)], gaps[min(step, len(gaps) - 1)])

    def stored(self, tokens: Tensor, x: Tensor, pending: Pending | None) -> Tensor:
        if self.tokens is not None and tuple(tokens.shape[1:3]) != self.tokens:
            frames, number = self.tokens
            rule = f"of {frames} frames of {number} tokens, for which the plan was made"
            raise ValueError(f"StepCache: clips must be {rule}, got {tokens.shape[1]} of {tokens.shape[2]}")
        return super().stored(tokens, x, pending)
