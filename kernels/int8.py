"""The ops whose rows leave as int8 on Triton: the kernels of fp8, which store what their output's dtype says."""

from typing import Any

import torch
from torch import Tensor

from latte_fast.kernels import bias_gelu_fp8, gate_residual_norm_modulate, norm_modulate, rows, rows_fp8


def rows_int8_fwd(x: Tensor, unsigned: bool) -> tuple[Tensor, Tensor]:
    """(values (x.shape), their scales (..., 1)); `unsigned` is False here and below."""
    return rows_fp8.launch_forward("rows_int8_fwd", x, torch.int8)


def norm_modulate_int8_fwd(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, unsigned: bool
) -> tuple[Tensor, Tensor]:
    """(values (x.shape), their scales (..., 1))."""
    h, h_scale = rows.empty_8bit(x, torch.int8)
    norm_modulate.launch_forward("norm_modulate_int8_fwd", x, shift, scale, eps, h, h_scale)
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
    """(x' in x's dtype, values of h (x.shape), their scales (..., 1))."""
    x_out = rows.empty(x.shape, x.dtype, x.device)
    h, h_scale = rows.empty_8bit(x, torch.int8)
    gate_residual_norm_modulate.launch_forward(
        "gate_residual_norm_modulate_int8_fwd", x, y, gate, shift, scale, eps, y_bias, pos, x_out, h, h_scale
    )
    return rows.rounded(x_out, x.dtype), h, h_scale


def bias_gelu_int8_fwd(u: Tensor, b: Tensor, factor: Tensor | None, unsigned: bool) -> tuple[Tensor, Tensor]:
    """(values (u.shape), their scales (..., 1)); u (..., M), b (M,), factor (M,) fp32."""
    return bias_gelu_fp8.launch_forward("bias_gelu_int8_fwd", u, b, factor, torch.int8)


def why_not(x: Tensor, *others: Any) -> str | None:
    if any(other is True for other in others):
        return "the Triton kernels round to signed integers"
    return rows.why_not_rows(x, *(t for t in others if isinstance(t, Tensor)))
