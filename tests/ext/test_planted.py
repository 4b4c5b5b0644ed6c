"""The criterion sees what is wrong with the C++ kernels, at whatever level they run."""

import pytest

from latte_fast import _ext, use_backend
from tests.helpers.planted import CELLS, assert_seen

pytestmark = pytest.mark.skipif(_ext.why_not_built() is not None, reason=str(_ext.why_not_built()))


@pytest.mark.parametrize(("defect", "sizes", "dtype"), CELLS)
def test_planted_defect_is_seen(defect, sizes, dtype) -> None:
    with use_backend("cpu"):
        assert_seen(defect, sizes, dtype, "cpu")
