"""Counts ops, copies and the bytes that a call allocates; measures no times."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.guards import require_backend

VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "split", "split_with_sizes", "unbind", "detach", "alias", "slice",
    "select", "expand", "unsqueeze", "squeeze", "permute", "as_strided", "reshape", "diagonal",
}  # fmt: skip
COPIES = ("clone", "copy_", "_to_copy", "contiguous", "cat", "stack", "repeat")


class Count(TorchDispatchMode):
    """Counts ops by name, without views; `copies` holds the sizes of copies, `bytes` the sum of new storages."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()
        self.copies: list[int] = []
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.ran[name] += 1
        if name in COPIES:
            self.copies.append(out.numel())
        storages = {x.untyped_storage()._cdata: x for x in tree_leaves(out) if isinstance(x, Tensor)}
        self.bytes += sum(x.untyped_storage().nbytes() for key, x in storages.items() if key not in before)
        return out


def require_kernels(width: int, heads: int) -> None:
    """Skips where an op would fall back to the oracle or another library, which runs other ops."""
    x = torch.randn(2, 3, width)
    require_backend("norm_modulate", x, x[:, 0], x[:, 0], 1e-6, x.dtype)
    q = torch.randn(1, 2, 3, heads, width // heads)
    if require_backend("axis_attention", q, q, q, "time", None, 1.0, None) == "sdpa":
        pytest.skip("attention is served by torch's SDPA")
