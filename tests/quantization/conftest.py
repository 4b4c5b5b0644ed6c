"""What stands for CUDA graphs where there is no GPU, and the model that is replayed."""

import pytest

from latte_fast import Latte, testing
from latte_fast.cuda_graphs import replay
from tests.helpers.pairs import SMALL
from tests.helpers.played import Played


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    monkeypatch.setattr(replay, "on_gpu", lambda x: True)
    monkeypatch.setattr(replay, "is_capturing", lambda: False)
    monkeypatch.setattr(replay, "new_pool", object)
    monkeypatch.setattr(replay, "capture", played.capture)
    return played


@pytest.fixture
def model() -> Latte:
    return testing.refill(Latte(**SMALL, extras=2)).eval()
