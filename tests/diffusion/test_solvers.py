"""Samplers as rows of numbers: fitted orders on a Gaussian mixture, and the same numbers as the plain loops."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latte_fast.diffusion import create_diffusion
from latte_fast.diffusion.solvers import SOLVERS, Level, rows, solve
from latte_fast.testing import relative_error

MEANS, SPREADS, SHARES = (
    torch.tensor(v, dtype=torch.float64) for v in ((-1.0, 0.3, 1.2), (0.3, 0.2, 0.4), (0.3, 0.5, 0.2))
)
ORDERS = {"ddim": 1, "euler": 1, "dpm++": 2, "heun": 2, "unipc": 3}


def denoised(x: Tensor, level: Level) -> Tensor:
    """The exact x_0 prediction for a mixture of three normal distributions."""
    signal, noise = level
    variance = (signal * SPREADS) ** 2 + noise**2
    off = x[:, None] - signal * MEANS
    posterior = torch.softmax(SHARES.log() - 0.5 * variance.log() - 0.5 * off**2 / variance, 1)
    return (posterior * (MEANS + signal * SPREADS**2 / variance * off)).sum(1)


def preserving(steps: int) -> list[Level]:
    """Levels of a variance-preserving process at even distances in log signal-to-noise."""
    halves = [-4 + 6 * i / steps for i in range(steps + 1)]
    return [(1 / math.sqrt(1 + math.exp(-2 * h)), 1 / math.sqrt(1 + math.exp(2 * h))) for h in halves]


def straight(steps: int) -> list[Level]:
    """Levels of rectified flow at even distances in time."""
    times = [0.98 - 0.88 * i / steps for i in range(steps + 1)]
    return [(1 - t, t) for t in times]


def solution(method: str, levels: list[Level], flow: bool) -> Tensor:
    made = rows(method, levels, flow)
    start = torch.linspace(-2, 2, 64, dtype=torch.float64)
    return solve(made, start, lambda x, number: denoised(x, levels[made[number].level]))


@pytest.mark.parametrize("levels", [preserving, straight])
def test_errors_fall_with_the_order(levels: Callable[[int], list[Level]]) -> None:
    flow = levels is straight
    exact = solution("unipc", levels(1500), flow)
    for method in SOLVERS:
        errors = [float((solution(method, levels(n), flow) - exact).abs().max()) for n in (40, 80, 160)]
        order = math.log2(errors[0] / errors[2]) / 2
        assert order == pytest.approx(ORDERS[method], abs=0.25), (method, errors)


def test_a_wrong_coefficient_costs_the_order() -> None:
    """What the test above would say of a corrector that weighs the new prediction by half."""

    def planted(steps: int) -> Tensor:
        levels = preserving(steps)
        made = [
            row._replace(
                correct=row.correct
                and row.correct._replace(weights=(0.5 * row.correct.weights[0], *row.correct.weights[1:]))
            )
            for row in rows("unipc", levels)
        ]
        start = torch.linspace(-2, 2, 64, dtype=torch.float64)
        return solve(made, start, lambda x, number: denoised(x, levels[made[number].level]))

    exact = solution("unipc", preserving(1500), False)
    errors = [float((planted(n) - exact).abs().max()) for n in (40, 160)]
    assert math.log2(errors[0] / errors[1]) / 2 < 1.5


@pytest.mark.parametrize("method", ["ddim", "dpm++"])
def test_same_numbers_as_the_plain_loop(method: str) -> None:
    process = create_diffusion("12", learn_sigma=False, prediction="start_x")
    noise = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(0.7 * x + 0.001 * t.view(-1, 1, 1, 1, 1))

    want = process.sample(method, model, tuple(noise.shape), noise=noise, clip_denoised=False)
    bars = process.tables.alphas_cumprod[::-1]
    times = process.timestep_map[::-1]
    made = rows(method, [*((math.sqrt(b), math.sqrt(1 - b)) for b in bars), (1.0, 0.0)])
    got = solve(made, noise, lambda x, number: model(x, torch.full((2,), times[made[number].level])))
    assert relative_error(got, want) <= 3e-6


def test_bad_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="method must be one of ddim"):
        rows("plms", preserving(4))
    with pytest.raises(ValueError, match="levels must be two or more"):
        rows("ddim", [(1.0, 0.1), (0.9, 0.2)])
