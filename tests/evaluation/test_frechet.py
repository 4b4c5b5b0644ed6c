"""Moments and distance, against numpy, eigenvalues of the product, and closed forms."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from latte_fast.evaluation.frechet import (
    ROWS,
    Moments,
    blocks,
    frechet_distance,
    merge,
    moments,
    moments_of,
    regroup,
)


def features(n: int, width: int, seed: int, mean: float = 0.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=draw, dtype=torch.float64)
    return mean + torch.randn(n, width, generator=draw, dtype=torch.float64) @ mix


def by_eigenvalues(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as it is written, in float64: the root's trace is that of the product's eigenvalues' roots."""
    s, t = (np.atleast_2d(np.cov(x.T, bias=True)) for x in (a, b))
    roots = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real.sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * roots)


@pytest.mark.parametrize("width", [1, 2, 17])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_distance_is_that_of_the_products_eigenvalues(width: int, mean: float) -> None:
    a, b = features(200, width, 1), features(300, width, 2, mean)
    expected = by_eigenvalues(a.numpy(), b.numpy())
    assert expected > 0.01
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(expected, rel=1e-10)


def test_distance_of_commuting_covariances() -> None:
    """Of diagonal covariances it is the sum of the squared differences of standard deviations."""
    u, v = torch.tensor([0.5, 2.0, 0.0, 7.0]).double(), torch.tensor([1.5, 2.0, 3.0, 0.0]).double()
    a = Moments(10, torch.zeros(4).double(), 10 * u.square().diag())
    b = Moments(20, torch.tensor([1.0, 0, 0, -2.0]).double(), 20 * v.square().diag())
    assert frechet_distance(a, b) == pytest.approx(5 + float((u - v).square().sum()), rel=1e-13)


@pytest.mark.parametrize(("n", "width"), [(500, 40), (30, 400)], ids=["more", "fewer-than-features"])
def test_a_set_is_nowhere_from_itself_and_a_shift_away_by_its_square(n: int, width: int) -> None:
    x = features(n, width, 3)
    scale = float(moments(x).covariance.trace())
    assert frechet_distance(moments(x), moments(x)) <= 1e-12 * scale
    # the same set found in another order
    assert frechet_distance(moments(x), moments(x.flip(0))) <= 1e-12 * scale
    shift = torch.randn(width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    got = frechet_distance(moments(x), moments(x + shift))
    assert got == pytest.approx(float(shift.square().sum()), abs=1e-12 * scale)


def test_rounding_does_not_make_it_negative() -> None:
    sets = [features(60, 20, seed) for seed in range(30)]
    found = [frechet_distance(moments(x), moments(x.flip(0))) for x in sets]
    # where nothing was clamped about half would be below
    assert min(found) == 0 and max(found) > 0


def test_fewer_than_features() -> None:
    """Both covariances are singular: the roots' trace is then that of the small matrix of all products."""
    a, b = features(20, 150, 5), features(31, 150, 6)
    off_a, off_b = a - a.mean(0), b - b.mean(0)
    shared = torch.linalg.svdvals(off_a @ off_b.T).sum() / (20 * 31) ** 0.5
    own = moments(a).covariance.trace() + moments(b).covariance.trace()
    expected = float((a.mean(0) - b.mean(0)).square().sum() + own - 2 * shared)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-12)


def test_features_that_are_all_alike() -> None:
    x = torch.ones(5, 3)
    assert frechet_distance(moments(x), moments(x)) == 0
    assert frechet_distance(moments(x), moments(3 * x)) == 12


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_are_numpys_however_they_are_cut(offset: float) -> None:
    x = features(2500, 6, 7) + offset
    expected = np.cov(x.numpy().T, bias=True)
    scale = np.abs(expected).max()
    for sizes in ([2500], [1] * 2500, [ROWS, ROWS, 2500 - 2 * ROWS], [7, 0, 2000, 493]):
        got = moments_of(x.split(sizes))
        assert got.count == 2500
        assert np.abs(got.mean.numpy() - x.numpy().mean(0)).max() <= 1e-12 * max(1, offset)
        # sums of squares at this offset have lost every digit
        assert np.abs(got.covariance.numpy() - expected).max() <= (1e-12 if not offset else 1e-9) * scale
        if offset == 0:
            whole = moments_of([x])
            assert torch.equal(got.mean, whole.mean) and torch.equal(got.scatter, whole.scatter)


def test_merge_of_any_parts_is_the_whole() -> None:
    x = features(101, 5, 8, mean=2.0)
    whole = moments(x)
    for cut in (1, 50, 100):
        got = merge(moments(x[:cut]), moments(x[cut:]))
        assert got.count == 101
        assert (got.mean - whole.mean).abs().max() <= 1e-12
        assert (got.scatter - whole.scatter).abs().max() <= 1e-12 * whole.scatter.abs().max()


def test_moments_of_float32_are_those_of_float64() -> None:
    x = (features(300, 4, 9) + 1000).float()
    assert torch.equal(moments(x).scatter, moments(x.double()).scatter)


def test_parts_are_let_go_as_they_come() -> None:
    """What stays of each batch is copied, or the memory of its pixels is not used again."""
    alive: list[weakref.ref] = []

    def parts() -> Iterator[torch.Tensor]:
        for i in range(300):
            assert not any(ref() is not None for ref in alive)
            part = torch.full((8, 3), float(i))
            alive[:] = [weakref.ref(part)]
            yield part
            del part

    assert moments_of(parts()).mean.tolist() == pytest.approx([149.5] * 3)


@pytest.mark.parametrize("sizes", [[1, 2, 3], [1024, 1], [1023, 2], [0, 5000], [3, 0, 2045, 1000]])
def test_blocks_keep_rows_and_order(sizes: list[int]) -> None:
    x = torch.arange(2.0 * sum(sizes)).view(-1, 2)
    got = list(blocks(x.split(sizes)))
    assert torch.equal(torch.cat(got), x.double()) and all(len(block) == ROWS for block in got[:-1])


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_regroup_keeps_rows_and_order(rows: int) -> None:
    x = torch.arange(10)
    got = list(regroup(x.split([2, 0, 5, 3]), rows))
    assert torch.equal(torch.cat(got), x)
    assert all(len(part) == rows for part in got[:-1]) and 1 <= len(got[-1]) <= rows


def test_what_is_refused() -> None:
    a = moments(torch.randn(4, 3))
    with pytest.raises(ValueError, match="frechet_distance: features must have one width, got 3 and 2"):
        frechet_distance(a, moments(torch.randn(4, 2)))
    with pytest.raises(ValueError, match="merge: features must have one width, got 3 and 2"):
        merge(a, moments(torch.randn(4, 2)))
    with pytest.raises(ValueError, match="moments must be finite, got others in b"):
        frechet_distance(a, moments(torch.full((4, 3), float("nan"))))
    with pytest.raises(ValueError, match=r"features must be \(N, D\) with N at least 1, got \(0, 3\)"):
        moments(torch.zeros(0, 3))
    for features in (torch.zeros(3), torch.zeros(4, 3, 1)):
        with pytest.raises(ValueError, match=r"moments: features must be \(N, D\) with N at least 1, got \("):
            moments(features)
    for width in (1, 2):
        with pytest.raises(ValueError, match=r"moments: features must be \(n, 3\) each time, got \(4, "):
            moments_of([torch.randn(4, 3), torch.randn(4, width)])
    with pytest.raises(ValueError, match="features must be at least 1, got none"):
        moments_of([])


@pytest.mark.parametrize(("count", "apart"), [(128, 0.50), (512, 0.17), (2048, 0.04)])
def test_fewer_look_further_apart(count: int, apart: float) -> None:
    """The figures of docs/evaluation.md."""
    draw = torch.Generator().manual_seed(0)
    deviation = (1 / torch.arange(1, 401, dtype=torch.float64)).sqrt()
    a, b = (moments(torch.randn(count, 400, generator=draw, dtype=torch.float64) * deviation) for _ in range(2))
    assert frechet_distance(a, b) / float(deviation.square().sum()) == pytest.approx(apart, abs=0.01)
