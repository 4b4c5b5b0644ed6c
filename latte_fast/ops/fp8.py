"""Rows as 8-bit values (e4m3) and an fp32 scale each: rows_fp8, and the ops whose result leaves in that form.

None has a gradient. A row's scale is its largest magnitude over 448; the product of two such matrices is scaled back
by both.
"""

from typing import Any

import torch
from torch import Tensor

from latte_fast.ops.checks import (
    check_groups,
    check_like,
    check_pos,
    check_rows,
    checked_number,
    checked_vector,
    partners,
)
from latte_fast.ops.registration import KernelOp, empty, records
from latte_fast.reference.functional import (
    FP8,
    bias_gelu_fp8_ref,
    gate_residual_norm_modulate_fp8_ref,
    norm_modulate_fp8_ref,
    rows_fp8_ref,
)


def rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of x as 8-bit values, and its scale: the largest magnitude over 448.

    Args:
        x: (..., D), any leading strides.

    Returns:
        Values (..., D), float8_e4m3fn, rounded to nearest even, and scales (..., 1), fp32. A row of zeros has the scale
        2^-100; a row that holds NaN or an infinity is NaN once it is multiplied by its scale.
    """
    check_rows("rows_fp8", "x", x)
    refuse_gradient("rows_fp8", x)
    return _ROWS(x)


def norm_modulate_fp8(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """LN(x) * (1 + scale) + shift as 8-bit values, and the scale of each row.

    Args:
        x: (..., D), any leading strides.
        shift: (G, D), G dividing the rows of x; group g modulates the g-th run of rows. May be a view of (G, 6D).
        scale: as shift.
    """
    return _NORM(*checked_norm("norm_modulate_fp8", x, shift, scale, eps))


def gate_residual_norm_modulate_fp8(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    y_bias: Tensor | None = None,
    pos: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x' = x + gate * (y + y_bias) + pos, LN(x') * (1 + scale) + shift as 8-bit values, and the scale of each row.

    Args:
        x: (..., D) residual stream, any leading strides; may be fp32 beside 16-bit partners. x' has its dtype.
        y: as x, what a sublayer returned.
        gate: (G, D), G dividing the rows of x.
        shift: as gate.
        scale: as gate.
        y_bias: (D,), the bias of the linear layer that made y, left to this pass.
        pos: broadcasts to x; a position embedding that enters here.
    """
    return _FUSED(*checked_fused("gate_residual_norm_modulate_fp8", x, y, gate, shift, scale, eps, y_bias, pos))


def bias_gelu_fp8(u: Tensor, b: Tensor | None = None, *, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """tanh-GELU(u + b) * factor as 8-bit values, and the scale of each row.

    Args:
        u: (..., M), a linear layer's result without its bias.
        b: (M,) or None.
        factor: (M,) or None, by whose inverse the columns of the next layer's weight were multiplied.
    """
    return _GELU(*checked_gelu("bias_gelu_fp8", u, b, factor))


def checked_norm(name: str, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Any, ...]:
    """Arguments of an op that normalises, as its kernels read them."""
    check_rows(name, "x", x)
    check_groups(name, x, shift=shift, scale=scale)
    if not _both_fp32(shift, scale):
        shift, scale = partners(name, x, shift=shift, scale=scale)
    refuse_gradient(name, x, shift, scale)
    return x, shift, scale, checked_number(name, "eps", eps)


def checked_fused(
    name: str,
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    y_bias: Tensor | None,
    pos: Tensor | None,
) -> tuple[Any, ...]:
    """Arguments of an op that adds a residual and normalises, as its kernels read them."""
    check_rows(name, "x", x)
    check_like(name, "y", y, x)
    check_groups(name, x, gate=gate, shift=shift, scale=scale)
    if _both_fp32(shift, scale):
        y, gate = partners(name, x, y=y, gate=gate)
    else:
        y, gate, shift, scale = partners(name, x, y=y, gate=gate, shift=shift, scale=scale)
    if y_bias is not None:
        y_bias = checked_vector(name, "y_bias", y_bias, x, x.shape[-1]).to(y.dtype)
    if pos is not None:
        check_pos(name, pos, x)
        pos = (pos if pos.stride(-1) == 1 else pos.contiguous()).to(x.dtype)
    refuse_gradient(name, x, y, gate, shift, scale)
    return x, y, gate, shift, scale, checked_number(name, "eps", eps), y_bias, pos


def _both_fp32(shift: Tensor, scale: Tensor) -> bool:
    """Returns whether a modulation is fp32, as one that holds a layer's input_factor is beside tensors of 16 bits."""
    return shift.dtype == scale.dtype == torch.float32


def checked_gelu(name: str, u: Tensor, b: Tensor | None, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Arguments of an op that adds a bias and applies GELU, as its kernels read them."""
    check_rows(name, "u", u)
    b = u.new_zeros(u.shape[-1]) if b is None else b
    b = checked_vector(name, "b", b, u, u.shape[-1], "M").to(u.dtype)
    factor = None if factor is None else checked_vector(name, "factor", factor, u, u.shape[-1], "M").float()
    refuse_gradient(name, u)
    return u, b, factor


def refuse_gradient(name: str, *tensors: Tensor) -> None:
    if records(*tensors):
        raise ValueError(f"{name}: has no gradient; call it under torch.no_grad(), or with tensors that ask for none")


def empty_rows(x: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """What a fake returns for 8-bit rows of x's shape and their scales."""
    return empty(x, dtype), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


_ROWS = KernelOp(
    "rows_fp8",
    "(Tensor x, str backend) -> (Tensor values, Tensor row_scale)",
    "",
    fake=empty_rows,
    ours=("triton",),
    reference=rows_fp8_ref,
    example=lambda sizes: {"x": sizes.tokens()},
)

_NORM = KernelOp(
    "norm_modulate_fp8",
    "(Tensor x, Tensor shift, Tensor scale, float eps, str backend) -> (Tensor h, Tensor row_scale)",
    "",
    fake=lambda x, shift, scale, eps: empty_rows(x),
    ours=("triton",),
    reference=norm_modulate_fp8_ref,
    example=lambda sizes: {"x": sizes.tokens(), **sizes.conditions("shift", "scale")},
)

_FUSED = KernelOp(
    "gate_residual_norm_modulate_fp8",
    "(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps, Tensor? y_bias, Tensor? pos, "
    "str backend) -> (Tensor x_out, Tensor h, Tensor row_scale)",
    "",
    fake=lambda x, y, gate, shift, scale, eps, y_bias, pos: (empty(x), *empty_rows(x)),
    ours=("triton",),
    reference=gate_residual_norm_modulate_fp8_ref,
    example=lambda sizes: {"x": sizes.tokens(), "y": sizes.tokens(), **sizes.conditions("gate", "shift", "scale")},
)

_GELU = KernelOp(
    "bias_gelu_fp8",
    "(Tensor u, Tensor b, Tensor? factor, str backend) -> (Tensor a, Tensor row_scale)",
    "",
    fake=lambda u, b, factor: empty_rows(u),
    ours=("triton",),
    reference=bias_gelu_fp8_ref,
    example=lambda sizes: {"u": sizes.tokens(widths=4), "b": sizes.randn(4 * sizes.width)},
)
