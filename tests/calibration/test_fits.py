"""Sums that are fitted on the way: the numbers found, what a run starts from, and plans that hold them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latte_fast.calibration.fits import Fits, better, each_psnr
from latte_fast.calibration.paths import dense_late, marks_of, stretched
from latte_fast.calibration.search import open_search
from latte_fast.calibration.trajectory import Trajectory
from latte_fast.diffusion.solvers import Sum
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.plan import load_plan
from latte_fast.sampling.planned import run_plan
from latte_fast.sampling.request import Request
from latte_fast.sampling.sample import open_source
from latte_fast.sampling.source import ModelSource
from latte_fast.training import DiffusionConfig, ModelConfig, Trainer
from tests.helpers.tiny_run import stirred, tiny

MODEL = ModelConfig(patch_size=4, hidden_size=32, depth=2, num_heads=2, class_dropout_prob=0.2, learn_sigma=False)
STEPS = 14
MARKS = "C0-C1-1C2C1-CC"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    out = tmp_path_factory.mktemp("fits") / "run"
    Trainer(tiny(out, model=MODEL, steps=1, diffusion=DiffusionConfig(prediction="start_x")), say=lambda _: None).run()
    source = open_source(out, None, (), torch.float32, "cpu")
    assert source.network is not None
    stirred(source.network)
    return source


def trajectory_of(source: ModelSource, method: Any = "ddim") -> Trajectory:
    return open_search(source, Request(count=3, steps=STEPS, method=method)).trajectory


@pytest.fixture(scope="module")
def trajectory(source: ModelSource) -> Trajectory:
    return trajectory_of(source)


def test_a_known_sum_is_found() -> None:
    """Parts of any size; what no part can give is left out, and a strong pull leaves the given sum."""
    base, *parts = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1, 9, 0.1, 1]
    ).view(4, 1, 1)
    target = 0.5 * base - 2 * parts[0] + 3 * parts[1]
    fitted: Any = Fits.fitted
    found = fitted(SimpleNamespace(ridge=1e-12), base, parts, target, Sum(1.0, (1.0,)))
    assert (found.keep, *found.weights) == pytest.approx((0.5, -2.0, 3.0, 0.0), abs=1e-5)
    kept = fitted(SimpleNamespace(ridge=1e12), base, parts, target, Sum(0.7, (0.2,)))
    assert (kept.keep, *kept.weights) == pytest.approx((0.7, 0.2, 0.0, 0.0), abs=1e-9)


def test_a_prediction_that_was_taken_again_counts_once() -> None:
    """Its newest place has the weight, and sums reach back beyond the places of the others."""
    base, *parts = torch.randn(5, 3, 50, generator=torch.Generator().manual_seed(0))
    target = 0.5 * base - 2 * parts[0] + 3 * parts[2]
    fitted: Any = Fits.fitted
    again = [parts[0], parts[0], parts[1], parts[1], parts[1], parts[2], parts[3]]
    found = fitted(SimpleNamespace(ridge=1e-12), base, again, target, Sum(1.0, (1.0,)))
    assert (found.keep, *found.weights) == pytest.approx((0.5, -2.0, 0.0, 0.0, 0.0, 0.0, 3.0), abs=1e-5)
    kept = fitted(SimpleNamespace(ridge=1e12), base, again, target, Sum(0.7, (0.2, 0.1, 0.4)))
    assert (kept.keep, *kept.weights) == pytest.approx((0.7, 0.3, 0.0, 0.4, 0.0, 0.0, 0.0), abs=1e-9)


@pytest.mark.parametrize("method", ["ddim", "dpm++", "unipc", "heun"])
def test_a_strong_pull_leaves_the_sampler(method: str, source: ModelSource) -> None:
    """What sums are pulled towards is the sampler's own step, mended as the sampler mends it."""
    trajectory = trajectory_of(source, method)
    count = len(trajectory.plan.rows)
    marks = marks_of(count, stretched(dense_late(count, 6, 1.5, 3)))
    own, pulled = (Fits(trajectory, sums, 1e12).run(marks)[1] for sums in (False, True))
    torch.testing.assert_close(pulled, own, rtol=0, atol=2e-5)
    loss, fitted = (float(each_psnr(x, trajectory.result).mean()) for x in (own, Fits(trajectory).run(marks)[1]))
    assert fitted > loss + 0.5


def test_a_run_starts_where_it_differs(trajectory: Trajectory) -> None:
    fits = Fits(trajectory)
    fits.run(MARKS)
    fits.keep()
    other = "C0-C1-1C2CC-1C"
    calls: list[int] = []
    handle = trajectory.net.register_forward_hook(lambda *args: calls.append(1))
    plan, x = fits.run(other)
    handle.remove()
    assert len(calls) == 3  # from the tenth step on, one of which is repeated
    fresh = Fits(trajectory).run(other)
    assert plan == fresh[0] and torch.equal(x, fresh[1])
    assert fits.run(MARKS)[0] == Fits(trajectory).run(MARKS)[0]


def test_a_run_that_falls_behind_is_given_up(trajectory: Trajectory) -> None:
    """Compared at a computed step after the last one that differs; a run that is ahead there goes on to the end."""
    fits = Fits(trajectory)
    fits.run(MARKS)
    fits.keep()
    states = fits.kept[1]
    errors = [
        float((s.x - x).pow(2).flatten(1).mean(1).clamp_min(1e-30).log().mean())
        for s, x in zip(states[1:], [*trajectory.x[1:], trajectory.result], strict=True)
    ]
    assert [s.error for s in states[1:]] == pytest.approx(errors, rel=1e-4)
    assert fits.run_ahead("C0-000000C1-CC", 2) is None and fits.tried is fits.kept
    ahead = "CCCCCCC" + MARKS[7:]
    made = fits.run_ahead(ahead, 1)
    assert made is not None and made[0] == fits.run(ahead)[0]


def test_plans_hold_what_was_fitted(source: ModelSource, trajectory: Trajectory, tmp_path: Path) -> None:
    """A stored plan makes the films of the fit, and other samples lose less with it than without fits."""
    plan, x = Fits(trajectory).run(MARKS)
    plan.save(tmp_path / "plan.json")
    loaded = load_plan(tmp_path / "plan.json")
    assert loaded == plan and str(plan) == f"ddim {MARKS}" and plan.fitted_sums and plan.computed == 6
    assert "prediction taken again" in plan.table()
    fitted = [i for i, row in enumerate(plan.rows) if row.fitted_correct]
    assert fitted == [3, 7, 9, 12]
    # from the first reused step on, but for a step whose prediction the next one takes again
    assert [i for i, row in enumerate(plan.rows) if not row.fitted_predict] == [0, 1, 4, 10]
    numbers = range(40, 48)
    condition = source.condition_for(numbers, 0)
    noise = source.noise(numbers, source.shape, 0)
    films = []
    plain = Fits(trajectory, sums=False).run(MARKS)[0]
    for followed in (trajectory.plan, loaded, plain):
        denoiser = source.denoiser(source.model, condition.given, condition.null, 4.0)
        films.append(source.follow(followed, denoiser, noise, tables=True))
    assert each_psnr(films[1], films[0]).mean() > each_psnr(films[2], films[0]).mean() + 0.5
    denoiser = trajectory.denoiser.of_first(3)
    again = run_plan(loaded, trajectory.net, denoiser, trajectory.noise)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-6)


def test_a_repeated_step_calls_nothing(trajectory: Trajectory) -> None:
    plan = Fits(trajectory).run(MARKS)[0]
    calls: list[int] = []
    handle = trajectory.net.register_forward_hook(lambda *args: calls.append(1))
    trajectory.denoiser.reuse = StackReuse()
    run_plan(plan, trajectory.net, trajectory.denoiser, trajectory.noise)
    handle.remove()
    assert len(calls) == STEPS - MARKS.count("-")
    row = replace(plan.rows[3], repeat=True)
    with pytest.raises(ValueError, match="step 3 must not repeat a prediction that it computes"):
        replace(plan, rows=(*plan.rows[:3], row, *plan.rows[4:]))


def test_better_by_more_than_noise() -> None:
    before = torch.tensor([30.0, 40.0, 20.0])
    assert better(before + torch.tensor([0.1, 0.2, 0.1]), before, 1.0)
    assert better(before + torch.tensor([3.0, -2.0, 0.2]), before) and not better(
        before + torch.tensor([3.0, -2.0, 0.2]), before, 1.0
    )
    assert not better(before, before)
