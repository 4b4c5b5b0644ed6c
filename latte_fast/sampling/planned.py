"""Runs a plan: one flat loop over its rows, which computes or reuses the blocks as each row says."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.diffusion import Diffusion, create_diffusion, space_timesteps
from latte_fast.diffusion.solvers import Level, rows, solve
from latte_fast.modules.modulation import ModulationTable
from latte_fast.modules.precision import Precisions
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.config import DiffusionConfig
from latte_fast.runs.plan import Plan, PlanRow
from latte_fast.sampling.known import Known

Call = Callable[..., Tensor]


def whole_process(config: DiffusionConfig, learn_sigma: bool) -> Diffusion:
    """Returns the process with all the steps that it was trained with, so that a row names its step directly."""
    return create_diffusion(
        "", config.schedule, learn_sigma=learn_sigma, diffusion_steps=config.steps, prediction=config.prediction
    )


def plain_plan(
    process: Diffusion,
    method: str,
    steps: int,
    scale: float,
    keywords: Sequence[Mapping[str, Any]] = (),
    **made_for: Any,
) -> Plan:
    """Returns the plan of a deterministic sampler that computes every step; `keywords` are the model's, by step."""
    times = space_timesteps(process.num_timesteps, str(steps))[::-1]
    signal, noise = process.tables.sqrt_alphas_cumprod, process.tables.sqrt_one_minus_alphas_cumprod
    levels: list[Level] = [(float(signal[t]), float(noise[t])) for t in times]
    made = rows(method, [*levels, (1.0, 0.0)], process.prediction == "flow")
    guidance = "both" if scale != 1.0 else "off"
    sides = [given.get("side") for given in keywords] or [None] * steps
    plan = tuple(
        PlanRow(times[row.level], row.correct, row.predict, guidance=guidance, side=sides[row.level])  # type: ignore[arg-type]
        for row in made
    )
    return Plan(method, steps, scale, plan, made_for)


class Denoiser:
    """Makes the x_0 predictions of a plan's rows: calls the model, or its two ends around a reused stack.

    Args:
        model: function called with (x, t, **condition).
        process: process with all its steps.
        condition: keywords of the model, with B rows each.
        null: null condition for guidance, under the same keywords.
        scale: guidance scale.
        reuse: store that is attached to the model.
        clip: whether x_0 is kept in [-1, 1], as pixels are and latents are not.
        dtype: data type of the model's input.
        known: frames that are there already, which the model is shown clean.
    """

    def __init__(
        self,
        model: Call,
        process: Diffusion,
        condition: dict[str, Tensor],
        null: dict[str, Tensor],
        scale: float,
        reuse: StackReuse,
        clip: bool = False,
        dtype: torch.dtype = torch.float32,
        known: Known | None = None,
    ):
        self.model, self.process, self.given, self.known = model, process, condition, known
        self.scale, self.reuse, self.clip, self.dtype = scale, reuse, clip, dtype
        self.doubled = {name: torch.cat([value, null[name]]) for name, value in condition.items()} if null else None
        self.difference: Tensor | None = None
        self.newest: Tensor | None = None  # prediction, which a repeated step takes again
        self.table: ModulationTable | None = None  # attached to the model, with a step for each row
        self.replays: tuple[Call, Call] | None = None  # called in the model's place for reused and computed steps
        self.precisions: Precisions | None = None  # of the model, where its steps are not all in its own

    @property
    def conditions(self) -> dict[str, Tensor]:
        """The model's keywords for the whole batch, both halves of it under guidance."""
        return self.doubled or self.given

    def of_first(self, count: int) -> "Denoiser":
        """Returns a denoiser of the first samples alone, with a store of its own."""
        given = {name: value[:count] for name, value in self.given.items()}
        doubled = self.doubled or {}
        null = {name: value[len(self.given[name]) :][:count] for name, value in doubled.items()}
        reuse = StackReuse(self.reuse.keep)
        return Denoiser(self.model, self.process, given, null, self.scale, reuse, self.clip, self.dtype)

    def __call__(self, x: Tensor, row: PlanRow, time: Tensor, position: int) -> Tensor:
        """Returns the x_0 prediction at x; `time` is the row's step as a tensor on x's device."""
        if row.repeat:
            assert self.newest is not None
            return self.newest
        if self.precisions is not None:
            # a step whose blocks are left out is the same in both
            self.precisions.select(row.precision if row.compute else self.precisions.known[0])
        if row.compute:
            self.reuse.compute(position)
        else:
            self.reuse.reuse(position, row.order, row.weights)
        if self.table is not None:
            self.table.select(position)
        out = self.guided(x, row, time)
        t = time.expand(x.shape[0])
        start = self.process.predict_start(out, x, t)
        self.newest = start.clamp(-1, 1) if self.clip else start
        return self.newest

    def guided(self, x: Tensor, row: PlanRow, time: Tensor) -> Tensor:
        channels, batch = x.shape[2], x.shape[0]
        model = self.model if self.replays is None else self.replays[row.compute]
        model = model if self.known is None else self.known.around(model)
        more: dict[str, Any] = {} if row.side is None else {"side": row.side}
        if row.guidance == "both":
            assert self.doubled is not None
            both = torch.cat([x, x]).to(self.dtype)
            out = model(both, time.expand(2 * batch), **self.doubled, **more).float()
            cond, uncond = out[:, :, :channels].chunk(2)
            self.difference = cond - uncond
            return uncond + self.scale * self.difference
        out = model(x.to(self.dtype), time.expand(batch), **self.given, **more).float()[:, :, :channels]
        if row.guidance == "off":
            return out
        assert self.difference is not None
        return out + (self.scale - 1) * self.difference


def times_of(plan: Plan, device: torch.device) -> Tensor:
    return torch.tensor([row.time for row in plan.rows]).to(device)


def run_plan(
    plan: Plan,
    net: nn.Module | None,
    denoiser: Denoiser,
    noise: Tensor,
    seen: Callable[[int, Tensor, Tensor], object] = lambda number, x, start: None,
) -> Tensor:
    """Returns x_0 for noise x_T; `seen` is called after each row with its number, x and x_0 prediction.

    `net` is the model whose blocks are reused; None for a plan that computes every step.
    """
    # made before the loop: a copy from the host would wait for the device at every step
    times = times_of(plan, noise.device)

    def predict(x: Tensor, number: int) -> Tensor:
        start = denoiser(x, plan.rows[number], times[number], number)
        seen(number, x, start)
        return start

    attached = contextlib.nullcontext() if net is None else denoiser.reuse.attached(net)
    with torch.no_grad(), attached:
        return solve(plan.solver_rows(), noise, predict)
