"""Published rules of when to reuse and how, written for the sum of a model's blocks: TeaCache, MagCache, TaylorSeer.

A rule is asked at every step for the weights of the sums that are kept, or None to run the blocks.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from latte_fast.calibration.trajectory import Trajectory
from latte_fast.modules.stack_reuse import extrapolation
from latte_fast.reference.functional import norm_modulate_ref
from latte_fast.runs.plan import PlanRow
from latte_fast.sampling.planned import Denoiser

Weights = tuple[float, ...] | None


class Rule(Protocol):
    def __call__(self, denoiser: "Ruled", x: Tensor, time: Tensor, step: int) -> Weights: ...


class Ruled(Denoiser):
    """A Denoiser that asks a rule instead of the plan's rows."""

    rule: Rule
    steps: int
    computed: list[int]

    @classmethod
    def of(cls, denoiser: Denoiser, rule: Rule, steps: int) -> "Ruled":
        out = cls.__new__(cls)
        out.__dict__.update(denoiser.__dict__)
        out.rule, out.steps, out.computed = rule, steps, []
        return out

    def __call__(self, x: Tensor, row: PlanRow, time: Tensor, position: int) -> Tensor:
        weights = None if position in (0, self.steps - 1) else self.rule(self, x, time, position)
        self.reuse.compute(position)
        if weights is None:
            self.computed.append(position)
        else:
            self.reuse.weights = weights
        start = self.process.predict_start(self.guided(x, row, time), x, time.expand(x.shape[0]))
        return start.clamp(-1, 1) if self.clip else start


def at_steps(computed: Sequence[int], order: int) -> Rule:
    """Returns the rule that computes some steps and extrapolates the others by Lagrange's polynomial."""
    known = set(computed)

    def rule(denoiser: Ruled, x: Tensor, time: Tensor, step: int) -> Weights:
        if step in known:
            return None
        return extrapolation([p for p, _ in denoiser.reuse.kept[: order + 1]], step)

    return rule


def taylorseer(computed: Sequence[int], order: int) -> Rule:
    """Returns TaylorSeer's rule: backward differences over the distance of computed steps stand for derivatives."""
    known = set(computed)

    def rule(denoiser: Ruled, x: Tensor, time: Tensor, step: int) -> Weights:
        if step in known:
            return None
        places = [p for p, _ in denoiser.reuse.kept[: order + 1]]
        weights = np.zeros(len(places))
        # rows of `differences` are the derivatives in terms of the kept sums
        differences = np.eye(len(places))
        k = step - places[0]
        for j in range(len(places)):
            weights += differences[0] * k**j / math.factorial(j)
            gaps = np.diff(places[: len(differences)])[:, None]
            differences = (differences[1:] - differences[:-1]) / gaps if len(differences) > 1 else differences
        return tuple(float(w) for w in weights)

    return rule


def magcache(trajectory: Trajectory, threshold: float, most: int, retention: float) -> Rule:
    """Returns MagCache's rule: reuse while the magnitudes' ratios, multiplied up, stay near one."""
    stacks = trajectory.stacks
    ratios = [1.0]
    for before, now in itertools.pairwise(stacks):
        ratios.append(float((now.norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)).mean()))
    first = int(retention * len(ratios))
    state = {"ratio": 1.0, "error": 0.0, "skipped": 0}

    def rule(denoiser: Ruled, x: Tensor, time: Tensor, step: int) -> Weights:
        state["ratio"] *= ratios[step]
        state["error"] += abs(1 - state["ratio"])
        state["skipped"] += 1
        if step >= first and state["error"] <= threshold and state["skipped"] <= most:
            return (1.0,)
        state.update(ratio=1.0, error=0.0, skipped=0)
        return None

    return rule


def computed_by(rule: Any, count: int) -> int:
    """Returns how many of so many steps a rule computes that looks at the number of the step alone."""
    return 2 + sum(rule(None, None, None, step) is None for step in range(1, count - 1))


def first_input(net: Any, x: Tensor, time: Tensor, given: dict[str, Tensor]) -> Tensor:
    """Returns the modulated norm of the first block's input, which TeaCache watches."""
    if hasattr(net, "x_embedder"):
        tokens = net.x_embedder(x) + net.space_positions(*(side // net.patch_size for side in x.shape[3:]))
        label = net.embed_condition(given.get("y"), given.get("text_embedding"))
        embedded = net.t_embedder(time)
        shift, scale = net.blocks[0].modulation(silu(embedded if label is None else embedded + label))[:2]
    else:
        # the positions, which no step changes, are left out
        tokens = net.pos_embed.proj(x.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])
        shared = net.adaln_single.linear(silu(net.embed_time(time))).unflatten(1, (6, -1))
        shift, scale = net.blocks[0].modulation(shared)[:2]
    return norm_modulate_ref(tokens, shift, scale, 1e-6)


def relative_change(now: Tensor, before: Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())


def teacache(trajectory: Trajectory, threshold: float) -> Rule:
    """Returns TeaCache's rule: changes of the first input, rescaled by a fitted polynomial, add up to a threshold."""
    fit = np.poly1d(polynomial(trajectory))
    state: dict[str, Any] = {"sum": 0.0, "before": None}

    def rule(denoiser: Ruled, x: Tensor, time: Tensor, step: int) -> Weights:
        now = watched(trajectory.net, denoiser, x, time)
        if state["before"] is None:
            state["before"] = watched(trajectory.net, denoiser, trajectory.noise, trajectory.times[0])
        state["sum"] += abs(float(fit(relative_change(now, state["before"]))))
        state["before"] = now
        if state["sum"] < threshold:
            return (1.0,)
        state["sum"] = 0.0
        return None

    return rule


def watched(net: nn.Module, denoiser: Denoiser, x: Tensor, time: Tensor) -> Tensor:
    with torch.no_grad():
        return first_input(net, x, time.expand(x.shape[0]), denoiser.given)


def polynomial(trajectory: Trajectory, degree: int = 4) -> np.ndarray:
    """Fits the relative change of a step's prediction to that of the first block's input, over one whole run."""
    inputs = [
        watched(trajectory.net, trajectory.denoiser, x, t) for x, t in zip(trajectory.x, trajectory.times, strict=True)
    ]
    changes = [relative_change(b, a) for a, b in itertools.pairwise(inputs)]
    starts = trajectory.starts
    outputs = [relative_change(b, a) for a, b in itertools.pairwise(starts)]
    return np.polyfit(changes, outputs, degree)


def threshold_for(
    run: Callable[[float], tuple[int, Any]], wanted: int, low: float, high: float, rounds: int = 14
) -> tuple[float, int, Any] | None:
    """Bisects for the threshold whose run computes `wanted` steps; returns (threshold, computed, result).

    Where no threshold computes exactly so many, the run with the fewest steps more is taken: the rule's advantage.
    """
    best: tuple[float, int, Any] | None = None
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        computed, result = run(middle)
        if computed >= wanted and (best is None or computed < best[1]):
            best = (middle, computed, result)
        if computed == wanted:
            break
        low, high = (middle, high) if computed > wanted else (low, middle)
    return best
