"""Each metric's maths against a reference that is written another way, and its interval."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from latte_fast.cli.evaluate import evaluate as command
from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.frechet import frechet_distance, moments
from latte_fast.evaluation.kernel_distance import SQUARE, jedi_distance, kernel_distance, mmd, subset_size
from latte_fast.evaluation.manifold import manifold_score, manifold_scores
from latte_fast.evaluation.metrics import METRICS, PRESETS, frechet_score
from latte_fast.evaluation.pixels import flicker, psnr, ssim
from latte_fast.evaluation.score import Score, mean_score, replicates, resampled

ROOT = Path(__file__).parents[2]


def rows(count: int, width: int = 7, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw, dtype=torch.float64) * 2 + shift


def looped(x: np.ndarray, y: np.ndarray, degree: int, offset: float, biased: bool) -> float:
    """The squared MMD as its definition says, one pair at a time."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + offset) ** degree

    total = 0.0
    for own in (x, y):
        pairs = [(i, j) for i, j in itertools.product(range(len(own)), repeat=2) if biased or i != j]
        total += sum(kernel(own[i], own[j]) for i, j in pairs) / len(pairs)
    return total - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_mmd_is_that_of_a_double_loop() -> None:
    x, y = rows(9), rows(6, shift=0.5, seed=1)
    for biased in (False, True):
        assert mmd(x, y, biased=biased) == pytest.approx(looped(x.numpy(), y.numpy(), 3, 1.0, biased), rel=1e-12)
    expected = looped(x.numpy(), y.numpy(), 2, 0.0, True)
    assert mmd(x, y, SQUARE, biased=True) == pytest.approx(expected, rel=1e-12)
    assert jedi_distance(x, y, {}).value == pytest.approx(100 * expected, rel=1e-12)
    # the biased distance of a set from itself is 0; unbiased, two draws of one distribution are on both sides of 0
    assert mmd(x, x, biased=True) == pytest.approx(0, abs=1e-9)
    signs = {mmd(rows(40, seed=2 * i), rows(40, seed=2 * i + 1)) > 0 for i in range(20)}
    assert signs == {True, False}


def test_kernel_distance_is_the_mean_over_subsets() -> None:
    x, y = rows(30), rows(25, shift=0.3, seed=1)
    whole = kernel_distance(x, y, {"subsets": 3, "subset": 25})
    # a subset of all rows of y still leaves out five of x
    assert whole.spread is not None and whole.spread > 0
    one = kernel_distance(x[:25], y, {"subsets": 4, "subset": 25})
    assert one.value == pytest.approx(mmd(x[:25], y), rel=1e-9) and one.spread == pytest.approx(0, abs=1e-9)
    many = kernel_distance(x, y, {"subsets": 2000, "subset": 10})
    error = many.values["standard_error"]
    # each subset's value is an unbiased estimate of that of all rows
    assert many.value == pytest.approx(mmd(x, y), abs=4 * error)
    assert error == pytest.approx(many.spread / 2000**0.5, rel=1e-3)
    assert (
        kernel_distance(x, y, {"subsets": 3, "subset": 5, "seed": 1}).value
        != kernel_distance(x, y, {"subsets": 3, "subset": 5, "seed": 2}).value
    )
    assert subset_size({}, 5000, 3000) == 1000 and subset_size({"subset": 0}, 30, 25) == 12
    with pytest.raises(ValueError, match="subset must be at most the 25 rows of the smaller set, got 26"):
        kernel_distance(x, y, {"subsets": 3, "subset": 26})


def neighbours_by_numpy(x: np.ndarray, y: np.ndarray, k: int) -> dict[str, float]:
    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    reach_x = np.sort(apart(x, x), 1)[:, k]
    reach_y = np.sort(apart(y, y), 1)[:, k]
    between = apart(y, x)
    return {
        "precision": (between < reach_y[:, None]).any(0).mean(),
        "recall": (between < reach_x[None]).any(1).mean(),
        "density": (between < reach_y[:, None]).sum(0).mean() / k,
        "coverage": (between.min(1) < reach_y).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_is_that_of_numpy(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(23, shift=0.4), rows(31, seed=1)
    expected = neighbours_by_numpy(x.numpy(), y.numpy(), k)
    monkeypatch.setattr("latte_fast.evaluation.manifold.ROWS", 10)
    score = manifold_score(x, y, {"neighbours": k, "bootstrap": 50})
    for name, value in expected.items():
        assert value > 0 and score.values[name] == pytest.approx(value, abs=1e-12)
        assert score.values[f"{name}_low"] <= value <= score.values[f"{name}_high"]
    assert score.value == score.values["precision"]


def test_manifold_of_far_sets_and_of_too_few_rows() -> None:
    apart = manifold_scores(rows(20), rows(20, shift=100.0, seed=1), 5)
    assert {name: float(term.mean()) for name, term in apart.items()} == dict.fromkeys(apart, 0.0)
    # inside a tight clump of real rows: precise, and most of the real rows are not covered
    real = rows(40, seed=1)
    clump = real[:1] + 0.01 * rows(20)
    found = {name: float(term.mean()) for name, term in manifold_scores(clump, real, 5).items()}
    assert found["precision"] == 1 and found["recall"] < 0.2 and found["coverage"] < 0.5
    with pytest.raises(ValueError, match="neighbours must be below the 5 rows of the smaller set, got 5"):
        manifold_scores(rows(5), rows(20), 5)


def ssim_by_numpy(x: np.ndarray, y: np.ndarray) -> float:
    """One window at a time, from its own weighted mean and variances."""
    at = np.arange(11) - 5
    line = np.exp(-(at**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for c, i, j in itertools.product(range(3), range(x.shape[1] - 10), range(x.shape[2] - 10)):
        a, b = x[c, i : i + 11, j : j + 11], y[c, i : i + 11, j : j + 11]
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        both = (weights * (a - mean_a) * (b - mean_b)).sum()
        up = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
        values.append(up / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(np.mean(values))


def test_pixels_are_those_of_numpy() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 3, 14, 17, generator=draw) for _ in range(2))
    y = 0.7 * x + 0.3 * y
    error = ((x.numpy().astype(np.float64) - y.numpy()) ** 2).reshape(2, -1).mean(1)
    assert psnr(x, y).numpy() == pytest.approx(-10 * np.log10(error), rel=1e-12)
    expected = [ssim_by_numpy(x[i].double().numpy(), y[i].double().numpy()) for i in range(2)]
    assert ssim(x, y).numpy() == pytest.approx(expected, rel=1e-9) and max(expected) < 0.98
    assert ssim(x, x).numpy() == pytest.approx([1, 1]) and psnr(x, x).tolist() == [100, 100]
    assert flicker(x).numpy() == pytest.approx([(x[1].double() - x[0].double()).abs().mean().item()], rel=1e-12)
    with pytest.raises(ValueError, match="frames must be at least 11x11 pixels for ssim, got 10x17"):
        ssim(x[:, :, :10], y[:, :, :10])


def test_intervals_hold_the_value_and_the_truth() -> None:
    """Of 60 sets, the true mean is inside the 95 % interval of nearly all; a wrong tail or spread is seen here."""
    inside, widths = 0, []
    for seed in range(60):
        column = rows(40, 1, seed=seed)
        score = mean_score(column, {"bootstrap": 400, "seed": seed})
        assert score.interval is not None and score.interval[0] < score.value < score.interval[1]
        inside += score.interval[0] < 0 < score.interval[1]
        widths.append(score.interval[1] - score.interval[0])
    assert 51 <= inside <= 60
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2 / 40**0.5, rel=0.1)


def test_an_interval_is_about_the_value() -> None:
    """Rows drawn twice push a distance up: without moving the replicates the value would lie below all of them."""
    x, y = rows(40), rows(40, shift=0.2, seed=1)

    def value(draw: torch.Generator) -> float:
        real = moments(resampled(y, draw))
        return frechet_distance(real, moments(resampled(x, draw)))

    again = replicates({"bootstrap": 30}, value)
    score = frechet_score(x, y, {"bootstrap": 30})
    assert min(again) > score.value
    assert score.interval is not None and score.interval[0] < score.value < score.interval[1]
    assert Score(1.0).bounded([]).interval is None
    # the same seed draws the same rows
    assert frechet_score(x, y, {"bootstrap": 30}) == score


def test_presets_are_settings_of_metrics() -> None:
    for name, (metric, settings) in PRESETS.items():
        row = METRICS[metric]
        against = {"real": "x", "kind": "videos"} if row.against == "real" else {}
        config = Evaluation("s", "d", name, **against)
        assert (config.metric, {key: config.setting(key) for key in settings}) == (metric, settings)
        assert settings.keys() <= row.settings.keys()
    with pytest.raises(ValueError, match="frames must be left out for fvd2048_16f, which sets 16, got 8"):
        Evaluation("s", "d", "fvd2048_16f", "x", "videos", frames=8)


def test_the_command_and_its_page_know_every_metric() -> None:
    assert command.__doc__ is not None
    page = (ROOT / "docs" / "evaluation.md").read_text()
    for name in (*METRICS, *PRESETS):
        assert re.search(rf"\b{name}\b", command.__doc__), name
        assert re.search(rf"^\| `{name}` \|", page, re.MULTILINE), name
    for name in METRICS:
        assert METRICS[name].about in page, name
