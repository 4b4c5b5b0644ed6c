"""Runs plans, hand-made masks and published rules on one model, on samples that no plan was searched on."""

import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reuse.broadcast import Broadcasting, Faster, Pyramid, broadcasting
from benchmarks.reuse.rules import Rule, Ruled, at_steps, computed_by, magcache, taylorseer, teacache, threshold_for
from latte_fast.calibration.fits import psnr
from latte_fast.calibration.paths import hand_made
from latte_fast.calibration.trajectory import Trajectory
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.plan import Plan
from latte_fast.sampling.planned import Denoiser, plain_plan, run_plan
from latte_fast.sampling.source import ModelSource

HELD_OUT = 1000  # number of the first sample


class Result(NamedTuple):
    """What one way to sample costs and loses."""

    name: str
    forwards: float
    psnr: float
    note: str = ""


class Race:
    """One model with one sampler, and films of every step computed to compare with."""

    def __init__(self, source: ModelSource, method: str, steps: int, scale: float, samples: int):
        self.source, self.scale, self.steps = source, scale, steps
        assert source.network is not None
        self.net: Any = source.network
        self.numbers = range(HELD_OUT, HELD_OUT + samples)
        self.noise = source.noise(self.numbers, source.shape, 0)
        keywords = source.adapter.step_keywords(steps)
        self.plain = plain_plan(source.whole, method, steps, scale, keywords)
        self.tea: dict[float, tuple[int, float]] = {}  # TeaCache's computed steps and PSNR by threshold
        self.exact = self.film(source.follow(self.plain, self.denoiser(), self.noise))

    def denoiser(self) -> Denoiser:
        condition = self.source.condition_for(self.numbers, 0)
        null = condition.null if self.scale != 1.0 else {}
        return self.source.denoiser(self.source.model, condition.given, null, self.scale)

    def film(self, latents: Tensor) -> Tensor:
        return self.source.vae.decode(latents)

    @functools.cached_property
    def trajectory(self) -> Trajectory:
        """The samples that rules are fitted on: those that they are judged on, to their advantage."""
        return Trajectory(self.plain, self.net, self.denoiser(), self.noise, lambda: None)

    def plan(self, name: str, plan: Plan) -> Result:
        latents = self.source.follow(plan, self.denoiser(), self.noise, tables=True)
        return self.result(name, plan, self.film(latents))

    def result(self, name: str, plan: Plan, film: Tensor) -> Result:
        return Result(name, plan.forwards * self.whole, psnr(film, self.exact))

    @property
    def whole(self) -> float:
        """Number of forwards for one that `Plan.forwards` counts: two halves where the model is guided."""
        return 1.0 if self.scale != 1.0 else 2.0

    def ruled(self, rule: Rule) -> tuple[int, float]:
        """Returns how many steps a rule computes, and the PSNR of its films."""
        denoiser = Ruled.of(self.denoiser(), rule, len(self.plain.rows))
        denoiser.reuse = StackReuse()
        latents = run_plan(self.plain, self.net, denoiser, self.noise)
        return len(denoiser.computed), psnr(self.film(latents), self.exact)

    def masks(self, computed: int) -> Result:
        """Returns the best of the hand-made masks with order 0 and 1."""
        found = [
            (self.ruled(at_steps(steps, order))[1], f"{name}, order {order}")
            for name, steps in hand_made(len(self.plain.rows), computed).items()
            for order in (0, 1)
        ]
        best, name = max(found)
        return Result("best hand-made mask", computed, best, name)

    def contenders(self, computed: int) -> Iterator[Result]:
        """Yields the published rules with this many computed steps, each with its best settings."""
        count = len(self.plain.rows)

        def best(name: str, tries: list[tuple[int, float, str]]) -> Result:
            if not tries:
                return Result(name, computed, float("nan"), "no threshold computes so few steps")
            steps, found, note = max(tries, key=lambda t: t[1])
            return Result(name, steps, found, note)

        tea = threshold_for(self.teacache, computed, *self.bracket(computed))
        tries = [] if tea is None else [(tea[1], tea[2], f"threshold {tea[0]:.3g}")]
        yield best("TeaCache", tries)
        tries = []
        for most in (4, 12):
            for retention in (0.2, 0.04):
                if retention * count > computed:
                    continue

                def rule(threshold: float, k: int = most, r: float = retention) -> Rule:
                    return magcache(self.trajectory, threshold, k, r)

                # what it computes depends on the step alone, so thresholds are tried without the model
                mag = threshold_for(lambda d, rule=rule: (computed_by(rule(d), count), None), computed, 1e-4, 1e2)  # type: ignore[misc]
                if mag is not None:
                    note = f"at most {most} in a row, first {retention:.0%} computed"
                    tries.append((*self.ruled(rule(mag[0])), note))
        yield best("MagCache", tries)
        tries = []
        for first in (1, 3):
            rest = hand_made(count - first, computed - first)["even"] if computed > first + 1 else []
            steps = [*range(first), *(i + first for i in rest)]
            for order in (1, 2):
                ran, found = self.ruled(taylorseer(steps, order))
                tries.append((ran, found, f"order {order}, first {first} computed"))
        yield best("TaylorSeer", tries)

    def teacache(self, threshold: float) -> tuple[int, float]:
        """Returns what `ruled` does for TeaCache at a threshold, each of which is run once."""
        if threshold not in self.tea:
            self.tea[threshold] = self.ruled(teacache(self.trajectory, threshold))
        return self.tea[threshold]

    def bracket(self, computed: int) -> tuple[float, float]:
        """Returns the thresholds nearest to this many computed steps that were run already."""
        low = max((d for d, (steps, _) in self.tea.items() if steps > computed), default=1e-3)
        high = min((d for d, (steps, _) in self.tea.items() if steps < computed), default=1e2)
        return low, high

    def broadcasts(self, share: float) -> Iterator[Result]:
        """Yields the schedules that reuse attention alone, at the cost that they have."""
        for name, kind in (("PAB", Pyramid), ("FasterCache", Faster)):
            with broadcasting(self.net) as placed:
                made: type[Broadcasting] = kind
                denoiser = made.of(self.denoiser(), placed, share, len(self.plain.rows))
                latents = run_plan(self.plain, self.net, denoiser, self.noise)
            yield Result(name, denoiser.cost, psnr(self.film(latents), self.exact), f"attention is {share:.0%}")


def attention_share(config: Any) -> float:
    """Returns attention's share of a block's multiply-adds: its four products of the MLP's eight, and the scores."""
    width, tokens = config.hidden_size, (config.input_size // config.patch_size) ** 2
    pair = 2 * tokens + 2 * config.num_frames
    attention = 2 * 4 * width**2 + pair * width
    return attention / (attention + 2 * 2 * config.mlp_ratio * width**2)


def seconds(run: Any) -> tuple[float, Any]:
    """Returns the seconds of one call, and its result."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    out = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, out
