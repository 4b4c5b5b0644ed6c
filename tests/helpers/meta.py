"""Models on the meta device without their initialisation, which takes seconds there and gives no values."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn

FILLS = ("uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "eye_", "xavier_uniform_",
         "xavier_normal_", "kaiming_uniform_", "kaiming_normal_")  # fmt: skip


@contextmanager
def on_meta() -> Iterator[None]:
    """Builds modules without values or memory; nn.init's functions do nothing meanwhile."""
    fills = {name: lambda tensor, *args, **kwargs: tensor for name in FILLS}
    with mock.patch.multiple(nn.init, **fills), torch.device("meta"):
        yield
