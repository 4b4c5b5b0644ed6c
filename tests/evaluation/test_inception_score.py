"""The score against closed forms and plain numpy."""

import numpy as np
import pytest
import torch

from latte_fast.evaluation.inception_score import inception_score


def in_numpy(p: np.ndarray, splits: int) -> tuple[float, float]:
    p = p.copy()
    np.random.RandomState(42).shuffle(p)
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


@pytest.mark.parametrize(("n", "splits"), [(2048, 10), (203, 10), (57, 1), (12, 5)])
def test_score_is_numpys(n: int, splits: int) -> None:
    logits = torch.randn(n, 11, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    p = (2 * logits).softmax(1)
    got, expected = inception_score(p, splits), in_numpy(p.numpy(), splits)
    assert expected[0] > 1.5
    assert got == pytest.approx(expected, rel=1e-12)


def test_score_of_doubt_is_one_and_of_certainty_the_number_of_classes() -> None:
    assert inception_score(torch.full((100, 7), 1 / 7, dtype=torch.float64)) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(torch.eye(7).repeat(3, 1), splits=1) == pytest.approx((7, 0), abs=1e-12)
    # all of one class
    assert inception_score(torch.eye(7)[:1].repeat(20, 1)) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (torch.ones(20, 3), "sum to 1 in each row, got a smallest of 1 and a first row that sums to 3"),
        (torch.tensor([[1.5, -0.5]]).repeat(20, 1), "at least 0 .* got a smallest of -0.5"),
        (torch.full((20, 2), float("nan")), "got a smallest of nan"),
        (torch.tensor([[0.5, 0.515]]).repeat(20, 1), "a first row that sums to 1.015"),
        (torch.ones(20), r"must be \(N, classes\), got \(20,\)"),
        (torch.ones(5, 1), r"splits must be in \[1, 5\], got 10"),
    ],
)
def test_what_is_refused(p: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"inception_score: .*{message}"):
        inception_score(p)


def test_score_needs_a_part() -> None:
    with pytest.raises(ValueError, match=r"inception_score: splits must be in \[1, 5\], got 0"):
        inception_score(torch.ones(5, 1), splits=0)
