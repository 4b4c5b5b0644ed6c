"""The helpers of models' tests as fixtures."""

from typing import Any

import pytest

from tests.helpers.flex import flex_pair
from tests.helpers.pairs import build_inputs, forward_backward


@pytest.fixture
def pair() -> Any:
    return flex_pair


@pytest.fixture
def inputs() -> Any:
    return build_inputs


@pytest.fixture
def run() -> Any:
    return forward_backward
