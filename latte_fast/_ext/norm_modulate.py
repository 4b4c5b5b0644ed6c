"""Launches the C++ kernels of norm_modulate."""

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import NO_GROUPS, NO_ROWS, addressable, groups, rows, shape


def why_not(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, out_dtype: torch.dtype | None = None
) -> str | None:
    if len({d == torch.float64 for d in (x.dtype, scale.dtype, out_dtype or x.dtype)}) > 1:
        return f"float64 needs every tensor in float64, got x {x.dtype}, scale {scale.dtype}, out_dtype {out_dtype}"
    return None


def norm_modulate_fwd(x: Tensor, shift: Tensor, scale: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
    h = torch.empty(x.shape, dtype=out_dtype)
    if h.numel():
        x = addressable(x)
        _ext.load().norm_modulate_fwd(
            rows(x), NO_ROWS, NO_ROWS, NO_ROWS, rows(h), NO_GROUPS, groups(shift), groups(scale), NO_GROUPS,
            shape(x, scale), eps, torch.get_num_threads(),
        )  # fmt: skip
    return h


def norm_modulate_bwd(dh: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype)
    if not x.numel():
        return dx, torch.zeros_like(scale), torch.zeros_like(scale)
    dshift, dscale = (torch.empty(scale.shape, dtype=scale.dtype) for _ in range(2))
    x, dh = addressable(x), addressable(dh)
    _ext.load().norm_modulate_bwd(
        NO_ROWS, rows(dh), rows(x), NO_ROWS, rows(dx), NO_ROWS, NO_GROUPS, groups(scale), NO_GROUPS,
        NO_GROUPS, groups(dshift), groups(dscale), NO_GROUPS, shape(x, scale), eps, torch.get_num_threads(),
    )  # fmt: skip
    return dx, dshift, dscale
