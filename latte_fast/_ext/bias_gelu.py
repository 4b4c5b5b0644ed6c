"""Launches the C++ kernels of bias_gelu."""

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import NO_GROUPS, NO_ROWS, addressable, groups, rows, shape


def why_not(u: Tensor, b: Tensor, out: Tensor | None = None) -> str | None:
    if (u.dtype == torch.float64) != (b.dtype == torch.float64):
        return f"float64 needs every tensor in float64, got u {u.dtype} and b {b.dtype}"
    return None


def bias_gelu_fwd(u: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """tanh-GELU(u + b); out may be u itself."""
    a = torch.empty(u.shape, dtype=u.dtype) if out is None else out
    if u.numel():
        u = addressable(u)
        _ext.load().bias_gelu_fwd(
            rows(u), rows(a), NO_ROWS, NO_ROWS, groups(b), NO_GROUPS, shape(u), torch.get_num_threads()
        )
    return a


def bias_gelu_bwd(da: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    du = torch.empty(u.shape, dtype=u.dtype)
    if not u.numel():
        return du, torch.zeros_like(b)
    db = torch.empty(b.shape, dtype=b.dtype)
    da, u = addressable(da), addressable(u)
    _ext.load().bias_gelu_bwd(
        rows(u), NO_ROWS, rows(da), rows(du), groups(b), groups(db), shape(u), torch.get_num_threads()
    )
    return du, db
