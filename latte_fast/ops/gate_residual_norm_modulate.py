"""gate_residual_norm_modulate: x' = x + gate * (y + y_bias) + pos; h = LN(x') * (1 + scale) + shift."""

import torch
from torch import Tensor

from latte_fast.ops.checks import (
    check_groups,
    check_like,
    check_out_dtype,
    check_pos,
    check_rows,
    checked_number,
    checked_vector,
    partners,
)
from latte_fast.ops.registration import KernelOp, empty
from latte_fast.reference.functional import gate_residual_norm_modulate_ref

_OP = "gate_residual_norm_modulate"


def gate_residual_norm_modulate(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    y_bias: Tensor | None = None,
    pos: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """x' = x + gate * (y + y_bias) + pos and h = LN(x') * (1 + scale) + shift; returns (x', h).

    Args:
        x: (..., D) residual stream, any leading strides; may be fp32 beside 16-bit partners. x' has its dtype.
        y: as x, what a sublayer returned.
        gate: (G, D), G dividing the rows of x.
        shift: as gate.
        scale: as gate.
        y_bias: (D,), the bias of the linear layer that made y, left to this pass.
        pos: broadcasts to x; a position embedding that enters here.
        out_dtype: of h, by default shift's.
    """
    check_rows(_OP, "x", x)
    check_like(_OP, "y", y, x)
    check_groups(_OP, x, gate=gate, shift=shift, scale=scale)
    y, gate, shift, scale = partners(_OP, x, y=y, gate=gate, shift=shift, scale=scale)
    if y_bias is not None:
        y_bias = checked_vector(_OP, "y_bias", y_bias, x, x.shape[-1]).to(y.dtype)
    if pos is not None:
        check_pos(_OP, pos, x)
        pos = (pos if pos.stride(-1) == 1 else pos.contiguous()).to(x.dtype)
    out_dtype = check_out_dtype(_OP, out_dtype, shift.dtype, x, shift)
    return _FUSED(x, y, gate, shift, scale, checked_number(_OP, "eps", eps), y_bias, pos, out_dtype)


_FUSED = KernelOp(
    _OP,
    "(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps, Tensor? y_bias, Tensor? pos, "
    "ScalarType out_dtype, str backend) -> (Tensor x_out, Tensor h)",
    "(Tensor? dx_out, Tensor? dh, Tensor x_out, Tensor y, Tensor? y_bias, Tensor gate, Tensor scale, float eps, "
    "str backend) -> (Tensor dx, Tensor dy, Tensor dgate, Tensor dshift, Tensor dscale, Tensor dy_bias)",
    fake=lambda x, y, gate, shift, scale, eps, y_bias, pos, out_dtype: (empty(x), empty(x, out_dtype)),
    like={"x": "x_out", "shift": "gate"},
    sums={"pos": "dx"},
    reference=gate_residual_norm_modulate_ref,
    example=lambda sizes: {"x": sizes.tokens(), "y": sizes.tokens(), **sizes.conditions("gate", "shift", "scale")},
    elementwise=10,
)
