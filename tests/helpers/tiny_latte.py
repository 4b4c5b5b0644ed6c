"""A small Latte for tests of checkpoints."""

from typing import Any

import torch
from torch import nn

from latte_fast import Latte, testing

KEYWORDS = {"depth": 2, "hidden_size": 64, "num_heads": 2, "input_size": 8, "num_frames": 4}


def refilled() -> Latte:
    torch.manual_seed(0)
    return testing.refill(Latte(**KEYWORDS))  # type: ignore[return-value]


def fresh(**kwargs: Any) -> Latte:
    torch.manual_seed(1)
    return Latte(**KEYWORDS | kwargs)


def equal(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items())
