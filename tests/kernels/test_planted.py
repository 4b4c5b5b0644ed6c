"""The criterion sees what is wrong with the Triton kernels, whatever library interprets their dots."""

import pytest

from tests.helpers.planted import CELLS, assert_seen
from tests.kernels.conftest import DEVICE


@pytest.mark.parametrize(("defect", "sizes", "dtype"), CELLS)
def test_planted_defect_is_seen(defect, sizes, dtype) -> None:
    assert_seen(defect, sizes, dtype, DEVICE)
