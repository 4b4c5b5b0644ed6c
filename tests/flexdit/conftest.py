"""Fixtures of the tests of models: `pair` makes a FlexLatte and its oracle."""

from typing import Any

import pytest

from tests.helpers.flex import flex_pair
from tests.helpers.model_fixtures import inputs, run

__all__ = ["inputs", "pair", "run"]


@pytest.fixture
def pair() -> Any:
    return flex_pair
