"""Fixtures of the tests of models: `pair` makes a Latte and its oracle."""

from typing import Any

import pytest

from tests.helpers.model_fixtures import inputs, run
from tests.helpers.pairs import build_pair

__all__ = ["inputs", "pair", "run"]


@pytest.fixture
def pair() -> Any:
    return build_pair
