"""UniPC beside diffusers' UniPCMultistepScheduler, with the same levels and the same predictions."""

import math

import pytest
import torch
from torch import Tensor

from latte_fast.diffusion.solvers import rows, solve
from latte_fast.testing import relative_error

diffusers = pytest.importorskip("diffusers")


def predicted(x: Tensor, signal: float) -> Tensor:
    """A prediction of x_0 that is not linear in x and changes with the level."""
    return torch.tanh(0.8 * signal * x + 0.2 * math.sin(9 * signal))


@pytest.mark.parametrize("steps", [3, 9, 20])
def test_the_same_numbers_as_diffusers(steps: int) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="sample", solver_order=2,
        solver_type="bh2", final_sigmas_type="zero", lower_order_final=True,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    ratios = scheduler.sigmas.double().tolist()
    levels = [(1 / math.sqrt(1 + r * r), r / math.sqrt(1 + r * r)) for r in ratios]
    start = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start
    for time, (signal, _) in zip(scheduler.timesteps, levels, strict=False):
        x = scheduler.step(predicted(x, signal), time, x).prev_sample
    made = rows("unipc", levels)
    got = solve(made, start, lambda x, number: predicted(x, levels[made[number].level][0]))
    assert relative_error(got, x) <= 1e-5
    without = [row._replace(correct=None) for row in made]
    got = solve(without, start, lambda x, number: predicted(x, levels[made[number].level][0]))
    assert relative_error(got, x) > 1e-4
