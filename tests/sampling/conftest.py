"""The model that is replayed."""

import pytest

from latte_fast import Latte, testing
from tests.helpers.pairs import SMALL


@pytest.fixture
def model() -> Latte:
    return testing.refill(Latte(**SMALL, extras=2)).eval()
