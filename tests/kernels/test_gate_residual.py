"""gate_residual's kernels against the oracle."""

import pytest

from latte_fast import ops
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import pairwise
from tests.kernels.cases import DTYPES, LAYOUTS, groups, laid_out, name

AXES = {
    "D": (64, 72, 384, 768, 1152, 1153),
    "dtype": tuple(DTYPES),
    "layout": LAYOUTS,
    "y_layout": LAYOUTS[:4],
    "rows": ((2, 1, 5), (2, 2, 3), (1, 3, 4)),
}


def check(D: int, dtype: str, layout: str, y_layout: str, rows: tuple[int, int, int]) -> None:
    wide, narrow = DTYPES[dtype]
    x = laid_out(layout, *rows, D, wide)
    y = laid_out("flat" if layout == "flat" else y_layout, *rows, D, narrow, seed=1)
    (gate,) = groups(1, rows[0], D, narrow)
    compare(ops.gate_residual, R.gate_residual_ref, (x, y, gate), ("out", "dx", "dy", "dgate"))


@pytest.mark.parametrize("case", pairwise(AXES), ids=name)
def test_gate_residual_pairs(case: dict) -> None:
    check(**case)


@pytest.mark.slow
@pytest.mark.parametrize("rows", AXES["rows"], ids=str)
@pytest.mark.parametrize("y_layout", AXES["y_layout"])
@pytest.mark.parametrize("layout", AXES["layout"])
@pytest.mark.parametrize("dtype", AXES["dtype"])
@pytest.mark.parametrize("D", AXES["D"])
def test_gate_residual_product(D: int, dtype: str, layout: str, y_layout: str, rows: tuple) -> None:
    check(D, dtype, layout, y_layout, rows)
