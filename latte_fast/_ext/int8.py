"""Launches the C++ kernels whose rows leave as integers: rows_int8, the norms, bias_gelu_int8; and scale_rows."""

from typing import Any

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import NO_GROUPS, NO_ROWS, addressable, groups, rows, shape


def why_not(x: Tensor, *others: Any) -> str | None:
    tensors = [x, *(t for t in others if isinstance(t, Tensor))]
    if any(t.dtype == torch.float64 for t in tensors):
        return "the C++ kernels round fp32, bf16 and fp16 to integers, got torch.float64"
    # gate_residual_norm_modulate_int8 alone has a y, and more than five arguments after x
    y = others[0] if len(others) > 5 else x
    if x.dtype not in (torch.float32, y.dtype):
        return f"x must be fp32 or of y's dtype, got x {x.dtype} and y {y.dtype}"
    return None


def empty_rows(x: Tensor, unsigned: bool) -> tuple[Tensor, Tensor]:
    values = torch.empty(x.shape, dtype=torch.uint8 if unsigned else torch.int8)
    return values, torch.empty((*x.shape[:-1], 1), dtype=torch.float32)


def rows_int8_fwd(x: Tensor, unsigned: bool) -> tuple[Tensor, Tensor]:
    values, scale = empty_rows(x, unsigned)
    if x.numel():
        x = addressable(x)
        pointers = (scale.data_ptr(), 0)
        _ext.load().rows_int8_fwd(rows(x), rows(values), NO_GROUPS, pointers, shape(x), torch.get_num_threads())
    return values, scale


def norm_modulate_int8_fwd(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, unsigned: bool
) -> tuple[Tensor, Tensor]:
    h, h_scale = empty_rows(x, unsigned)
    if x.numel():
        x = addressable(x)
        _ext.load().norm_modulate_int8_fwd(
            rows(x), NO_ROWS, NO_ROWS, NO_ROWS, rows(h), NO_GROUPS, groups(shift), groups(scale), NO_GROUPS,
            h_scale.data_ptr(), shape(x, scale), eps, torch.get_num_threads(),
        )  # fmt: skip
    return h, h_scale


def gate_residual_norm_modulate_int8_fwd(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    y_bias: Tensor | None,
    pos: Tensor | None,
    unsigned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x_out = torch.empty(x.shape, dtype=x.dtype)
    h, h_scale = empty_rows(x, unsigned)
    if x.numel():
        x, y = addressable(x), addressable(y)
        pos = None if pos is None else addressable(pos.expand(x.shape))
        _ext.load().gate_residual_norm_modulate_int8_fwd(
            rows(x), rows(y), NO_ROWS if pos is None else rows(pos), rows(x_out), rows(h), groups(gate), groups(shift),
            groups(scale), NO_GROUPS if y_bias is None else groups(y_bias), h_scale.data_ptr(), shape(x, gate), eps,
            torch.get_num_threads(),
        )  # fmt: skip
    return x_out, h, h_scale


def bias_gelu_int8_fwd(u: Tensor, b: Tensor, factor: Tensor | None, unsigned: bool) -> tuple[Tensor, Tensor]:
    a, a_scale = empty_rows(u, unsigned)
    if u.numel():
        bias_gelu_int8_into(addressable(u), b, factor, None, a, a_scale)
    return a, a_scale


def bias_gelu_int8_into(
    u: Tensor, b: Tensor, factor: Tensor | None, u_scale: Tensor | None, a: Tensor, a_scale: Tensor
) -> None:
    """Writes tanh-GELU(u * u_scale + b) * factor as integers to a, and their scales to a_scale (..., 1)."""
    pointers = (a_scale.data_ptr(), 0 if u_scale is None else u_scale.data_ptr())
    f = NO_GROUPS if factor is None else groups(factor)
    _ext.load().bias_gelu_int8_fwd(rows(u), rows(a), groups(b), f, pointers, shape(u), torch.get_num_threads())


def scale_rows(x: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Writes x * scale + bias to out, of x's dtype; scale (rows, 1) fp32."""
    pointers = (0, scale.data_ptr())
    b = NO_GROUPS if bias is None else groups(bias)
    _ext.load().scale_rows(rows(x), rows(out), b, pointers, shape(x), torch.get_num_threads())
