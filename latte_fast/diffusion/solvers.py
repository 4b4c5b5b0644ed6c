"""Deterministic samplers as rows of numbers: what a step keeps of x, and how much of each x_0 prediction it adds.

A noise level is (signal, noise): x = signal * x_0 + noise * eps. Every solver here moves x from level to level by sums
of x and of the latest x_0 predictions, whose coefficients depend on the levels alone. So a sampler is data: it can be
printed, stored, and run by one loop that waits for nothing.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

Level = tuple[float, float]
# Euler's step in this form is DDIM's, for any levels
SOLVERS = ("ddim", "dpm++", "unipc", "euler", "heun")


class Sum(NamedTuple):
    """keep * x + weights[0] * newest prediction + weights[1] * the one before + ..."""

    keep: float
    weights: tuple[float, ...]

    def __call__(self, x: Tensor, predictions: Sequence[Tensor]) -> Tensor:
        out = self.keep * x
        for weight, prediction in zip(self.weights, predictions, strict=False):
            if weight:
                out = out.add_(prediction, alpha=weight)
        return out


class Row(NamedTuple):
    """One call of the model: x at `level` gives a prediction, by which `correct` mends x and `predict` moves on."""

    level: int
    correct: Sum | None
    predict: Sum


def rows(method: str, levels: Sequence[Level], flow: bool = False) -> list[Row]:
    """Returns a solver's rows for levels from the noisiest to the last, which may be (1, 0): x_0 itself.

    Args:
        method: one of SOLVERS: "ddim" and "euler" are of order 1, "dpm++" (2M) and "heun" of order 2 (heun calls the
            model twice a step), "unipc" (UniPC-2 with its corrector) of order 3.
        levels: (signal, noise) pairs, the noise falling.
        flow: whether the levels are those of rectified flow, (1 - t, t), in whose time Heun's step is then taken.
    """
    if method not in SOLVERS:
        raise ValueError(f"rows: method must be one of {', '.join(SOLVERS)}, got {method!r}")
    if len(levels) < 2 or any(a <= b for (_, a), (_, b) in itertools.pairwise(levels)):
        raise ValueError("rows: levels must be two or more, with less noise from one to the next")
    if method == "heun":
        return _heun(levels, flow)
    out: list[Row] = []
    for i in range(len(levels) - 1):
        correct = _unipc_corrected(levels, i) if method == "unipc" and i else None
        out.append(Row(i, correct, _predicted(method, levels, i)))
    return out


def solve(
    rows: Sequence[Row], x: Tensor, predict: Callable[[Tensor, int], Tensor], before: Sequence[Tensor] = ()
) -> Tensor:
    """Runs rows from noise x; `predict` returns the x_0 prediction for x at a row's number."""
    most = max(len(s.weights) for row in rows for s in (row.correct, row.predict) if s is not None)
    base, predictions = x, list(before)
    for number, row in enumerate(rows):
        predictions = [predict(x, number), *predictions][:most]
        base = x if row.correct is None else row.correct(base, predictions)
        x = row.predict(base, predictions)
    return x


def log_snr(level: Level) -> float:
    """Returns lambda, the logarithm of signal over noise."""
    signal, noise = level
    return math.inf if noise == 0 else -math.inf if signal == 0 else math.log(signal / noise)


def _first_order(now: Level, after: Level) -> tuple[float, float]:
    """Returns what the exact solution for a constant prediction keeps of x and adds of the prediction."""
    keep = after[1] / now[1]
    return keep, after[0] - keep * now[0]


def _predicted(method: str, levels: Sequence[Level], i: int) -> Sum:
    keep, weight = _first_order(levels[i], levels[i + 1])
    span = log_snr(levels[i + 1]) - log_snr(levels[i])
    # a first step has no earlier prediction; one that starts or ends without noise or signal has no finite step
    if method in ("ddim", "euler") or i == 0 or not math.isfinite(span) or not math.isfinite(log_snr(levels[i - 1])):
        return Sum(keep, (weight,))
    ratio = (log_snr(levels[i - 1]) - log_snr(levels[i])) / span  # negative
    if method == "dpm++" and levels[-1][1] == 0 and i == len(levels) - 3:
        return Sum(keep, (weight,))  # the last step of the plain loop that moves x at all is of order 1
    if method == "dpm++":
        slope = -0.5 * weight / ratio
    else:
        slope = -0.5 * levels[i + 1][0] * math.expm1(-span) / -ratio
    return Sum(keep, (weight + slope, -slope))


def _unipc_corrected(levels: Sequence[Level], i: int) -> Sum:
    """Returns UniC's sum for level i: from the corrected x of level i - 1, with the predictions at i, i - 1 and i - 2.

    B(h) = e^h - 1 (the paper's B_2) for predictions of x_0, whose step is -h.
    """
    now, after = levels[i - 1], levels[i]
    keep, weight = _first_order(now, after)
    step = -(log_snr(after) - log_snr(now))
    if not math.isfinite(step):
        return Sum(keep, (0.0, weight))
    phi = math.expm1(step)
    first = phi / step - 1
    second = first / step - 0.5
    scale = -after[0] * phi
    if i < 2 or not math.isfinite(log_snr(levels[i - 2])):
        # one difference: its weight is 1/2
        half = 0.5 * scale
        return Sum(keep, (half, weight - half))
    ratio = (log_snr(levels[i - 2]) - log_snr(now)) / -step
    # two conditions on the differences to the prediction before and to the new one
    old = (first / phi - 2 * second / phi) / (1 - ratio)
    new = first / phi - old
    return Sum(keep, (scale * new, weight - scale * (new + old / ratio), scale * old / ratio))


def _heun(levels: Sequence[Level], flow: bool) -> list[Row]:
    """Returns two rows a step, Euler's and then the mean of both ends' slopes; one where the end has no noise."""
    out: list[Row] = []
    for i, (now, after) in enumerate(itertools.pairwise(levels)):
        keep, weight = _first_order(now, after)
        out.append(Row(i, None, Sum(keep, (weight,))))
        if after[1] == 0:
            continue
        # y = x / unit moves by (y - prediction) / time
        unit_now, unit_after = (1.0, 1.0) if flow else (now[0], after[0])
        begin, end = now[1] / unit_now, after[1] / unit_after
        step = end - begin
        keep = unit_after / unit_now * end / begin
        older, newest = -0.5 * step / begin * (1 + step / end), -0.5 * step / end
        out.append(Row(i + 1, Sum(keep, (unit_after * newest, unit_after * older)), Sum(1.0, (0.0,))))
    return out
