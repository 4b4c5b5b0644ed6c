"""The helpers of models' tests as fixtures; a folder's conftest adds `pair`, its oracle and model."""

from typing import Any

import pytest

from tests.helpers.pairs import build_inputs, forward_backward


@pytest.fixture
def inputs() -> Any:
    return build_inputs


@pytest.fixture
def run() -> Any:
    return forward_backward
