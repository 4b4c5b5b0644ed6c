"""pooled_norm's kernels against the oracle: widths, dtypes, layouts, groups, runs shared by several programs."""

import pytest
import torch

from latte_fast import ops
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import pairwise
from tests.kernels.cases import DTYPES, LAYOUTS, groups, laid_out, name

AXES = {
    "D": (64, 72, 384, 1152, 1153),
    "dtype": tuple(DTYPES),
    "layout": tuple(layout for layout in LAYOUTS if layout != "flat"),
    "rows": ((2, 1, 5), (2, 2, 3), (1, 17, 1), (1, 2, 33)),
    "axis": ("space", "time"),
    "each": (False, True),
}
NAMES = ("h", "dx", "dshift", "dscale")


def check(D: int, dtype: str, layout: str, rows: tuple[int, int, int], axis: str, each: bool) -> None:
    wide, narrow = DTYPES[dtype]
    B, F, N = rows
    x = laid_out(layout, B, F, N, D, wide)
    shift, scale = groups(2, B * F if each and axis == "space" else 1 if each else B, D, narrow)
    compare(lambda *a: ops.pooled_norm(*a, axis), lambda *a: R.pooled_norm_ref(*a, axis), (x, shift, scale), NAMES)


CASES = pairwise(AXES)
# one of each axis by default, in which several programs share a run
FEW = [
    {"D": 72, "dtype": "fp32", "layout": "sliced", "rows": (1, 2, 33), "axis": "space", "each": True},
    {"D": 64, "dtype": "bf16", "layout": "transposed", "rows": (1, 17, 1), "axis": "time", "each": False},
]


@pytest.mark.parametrize("case", [*FEW, *(pytest.param(case, marks=pytest.mark.slow) for case in CASES)], ids=name)
def test_pooled_norm_pairs(case: dict) -> None:
    check(**case)


def test_pooled_norm_empty_batch() -> None:
    x = torch.zeros(0, 3, 4, 64, device=laid_out("contiguous", 1, 1, 1, 8, torch.float32).device, requires_grad=True)
    h = ops.pooled_norm(x, x.new_zeros(0, 64), x.new_zeros(0, 64), "space")
    h.sum().backward()
    assert h.shape == (0, 3, 1, 64) and x.grad.shape == x.shape
