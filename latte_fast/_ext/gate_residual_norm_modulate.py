"""Launches the C++ kernels of gate_residual_norm_modulate."""

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import NO_GROUPS, NO_ROWS, addressable, groups, rows, shape


def why_not(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    y_bias: Tensor | None = None,
    pos: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> str | None:
    if len({d == torch.float64 for d in (x.dtype, y.dtype, out_dtype or y.dtype)}) > 1:
        return f"float64 needs every tensor in float64, got x {x.dtype}, y {y.dtype}, out_dtype {out_dtype}"
    if x.dtype not in (torch.float32, y.dtype):
        return f"x must be fp32 or of y's dtype, got x {x.dtype} and y {y.dtype}"
    return None


def gate_residual_norm_modulate_fwd(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    y_bias: Tensor | None,
    pos: Tensor | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    x_out = torch.empty(x.shape, dtype=x.dtype)
    h = torch.empty(x.shape, dtype=out_dtype)
    if x.numel():
        pos = pos if pos is None else addressable(pos.expand(x.shape))
        x, y = addressable(x), addressable(y)
        _ext.load().gate_residual_norm_modulate_fwd(
            rows(x), rows(y), NO_ROWS if pos is None else rows(pos), rows(x_out), rows(h), groups(gate), groups(shift),
            groups(scale), NO_GROUPS if y_bias is None else groups(y_bias), shape(x, gate), eps,
            torch.get_num_threads(),
        )  # fmt: skip
    return x_out, h


def gate_residual_norm_modulate_bwd(
    dx_out: Tensor | None,
    dh: Tensor | None,
    x_out: Tensor,
    y: Tensor,
    y_bias: Tensor | None,
    gate: Tensor,
    scale: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dy, dgate, dshift, dscale, dy_bias); dy_bias is empty where there is no bias."""
    dx = torch.empty(x_out.shape, dtype=x_out.dtype)
    dy = torch.empty(y.shape, dtype=y.dtype)
    if not y.numel():
        dy_bias = y.new_empty(0) if y_bias is None else torch.zeros_like(y_bias)
        return dx, dy, torch.zeros_like(gate), torch.zeros_like(scale), torch.zeros_like(scale), dy_bias
    dgate = torch.empty(gate.shape, dtype=gate.dtype)
    dshift, dscale = (torch.empty(scale.shape, dtype=scale.dtype) for _ in range(2))
    dy_bias = torch.empty(0 if y_bias is None else y_bias.shape, dtype=y.dtype)
    x_out, y = addressable(x_out), addressable(y)
    dx_out, dh = (d if d is None else addressable(d) for d in (dx_out, dh))
    _ext.load().gate_residual_norm_modulate_bwd(
        NO_ROWS if dx_out is None else rows(dx_out), NO_ROWS if dh is None else rows(dh), rows(x_out), rows(y),
        rows(dx), rows(dy), groups(gate), groups(scale), NO_GROUPS if y_bias is None else groups(y_bias),
        groups(dgate), groups(dshift), groups(dscale), NO_GROUPS if y_bias is None else groups(dy_bias),
        shape(y, gate), eps, torch.get_num_threads(),
    )  # fmt: skip
    return dx, dy, dgate, dshift, dscale, dy_bias
