"""Rows as integers of -127 .. 127 and an fp32 scale each, the ops whose result leaves so, and the product of such rows.

None has a gradient. A row's scale is its largest magnitude over 127. `unsigned` rows are uint8 and 128 more, which
processors multiply that have VNNI but no AMX.
"""

import math
from typing import Any

import torch
from torch import Tensor

from latte_fast.ops.checks import FLOATS, check_device, check_rows, checked_vector
from latte_fast.ops.fp8 import checked_fused, checked_gelu, checked_norm, empty_rows, refuse_gradient
from latte_fast.ops.registration import KernelOp, empty
from latte_fast.ops.sizes import Sizes
from latte_fast.reference.functional import (
    bias_gelu_int8_ref,
    gate_residual_norm_modulate_int8_ref,
    linear_int8_ref,
    norm_modulate_int8_ref,
    rows_int8_ref,
)


def rows_int8(x: Tensor, *, unsigned: bool = False) -> tuple[Tensor, Tensor]:
    """Each row of x as integers, and its scale: the largest magnitude over 127.

    Args:
        x: (..., D), any leading strides.
        unsigned: whether values are uint8 and 128 more.

    Returns:
        Values (..., D), int8 or uint8, rounded to nearest even, and scales (..., 1), fp32. A row of zeros has the scale
        2^-100; a row that holds NaN or an infinity has the scale NaN.
    """
    check_rows("rows_int8", "x", x)
    refuse_gradient("rows_int8", x)
    return _ROWS(x, _checked_flag("rows_int8", unsigned))


def norm_modulate_int8(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, unsigned: bool = False
) -> tuple[Tensor, Tensor]:
    """LN(x) * (1 + scale) + shift as integers, and the scale of each row.

    Args:
        x: (..., D), any leading strides.
        shift: (G, D), G dividing the rows of x; group g modulates the g-th run of rows. May be a view of (G, 6D).
        scale: as shift.
        unsigned: whether values are uint8 and 128 more.
    """
    name = "norm_modulate_int8"
    return _NORM(*checked_norm(name, x, shift, scale, eps), _checked_flag(name, unsigned))


def gate_residual_norm_modulate_int8(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    y_bias: Tensor | None = None,
    pos: Tensor | None = None,
    unsigned: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """x' = x + gate * (y + y_bias) + pos, LN(x') * (1 + scale) + shift as integers, and the scale of each row.

    Args:
        x: (..., D) residual stream, any leading strides; may be fp32 beside 16-bit partners. x' has its dtype.
        y: as x, what a sublayer returned.
        gate: (G, D), G dividing the rows of x.
        shift: as gate.
        scale: as gate.
        y_bias: (D,), the bias of the linear layer that made y, left to this pass.
        pos: broadcasts to x; a position embedding that enters here.
        unsigned: whether values are uint8 and 128 more.
    """
    name = "gate_residual_norm_modulate_int8"
    args = checked_fused(name, x, y, gate, shift, scale, eps, y_bias, pos)
    return _FUSED(*args, _checked_flag(name, unsigned))


def bias_gelu_int8(
    u: Tensor, b: Tensor | None = None, *, factor: Tensor | None = None, unsigned: bool = False
) -> tuple[Tensor, Tensor]:
    """tanh-GELU(u + b) * factor as integers, and the scale of each row.

    Args:
        u: (..., M), a linear layer's result without its bias.
        b: (M,) or None.
        factor: (M,) or None, by whose inverse the columns of the next layer's weight were multiplied.
        unsigned: whether values are uint8 and 128 more.
    """
    return _GELU(*checked_gelu("bias_gelu_int8", u, b, factor), _checked_flag("bias_gelu_int8", unsigned))


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """(x w^T) * x_scale * weight_scale + bias of integers, whose sums are exact.

    Args:
        x: (..., K), as `rows_int8` leaves it: int8, or uint8 that is 128 more.
        x_scale: (..., 1), fp32.
        weight: (N, K), int8.
        weight_scale: (N,), fp32.
        bias: (N,) or None.
        out_dtype: of the result.
    """
    name = "linear_int8"
    for what, t, dtypes in (("x", x, (torch.int8, torch.uint8)), ("weight", weight, (torch.int8,))):
        if not isinstance(t, Tensor) or t.dtype not in dtypes:
            rule = " or ".join(str(dtype) for dtype in dtypes)
            raise TypeError(f"{name}: {what} must be {rule}, got {getattr(t, 'dtype', type(t).__name__)}")
        _check_dense(name, what, t)
    if x.dim() < 2 or 0 in x.shape[1:]:
        raise ValueError(f"{name}: x must be (..., K) with no empty axis but the first, got {tuple(x.shape)}")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1] or not weight.shape[0]:
        raise ValueError(f"{name}: weight must be (N, K) with K = {x.shape[-1]}, got {tuple(weight.shape)}")
    check_device(name, "weight", weight, x)
    _check_scales(name, "x_scale", x_scale, (*x.shape[:-1], 1), x)
    _check_scales(name, "weight_scale", weight_scale, (weight.shape[0],), x)
    if not isinstance(out_dtype, torch.dtype) or out_dtype not in FLOATS:
        raise TypeError(f"{name}: out_dtype must be fp32, bf16, fp16 or fp64, got {out_dtype!r:.40}")
    if bias is not None:
        bias = checked_vector(name, "bias", bias, x, weight.shape[0], "N")
        refuse_gradient(name, bias)
    return _LINEAR(x, x_scale.contiguous(), weight, weight_scale.contiguous(), bias, out_dtype)


def _check_dense(name: str, what: str, t: Tensor) -> None:
    if t.layout != torch.strided:
        raise TypeError(f"{name}: {what} must be a dense tensor, got {t.layout}")


def _check_scales(name: str, what: str, scale: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if not isinstance(scale, Tensor) or scale.dtype != torch.float32:
        got = scale.dtype if isinstance(scale, Tensor) else type(scale).__name__
        raise TypeError(f"{name}: {what} must be fp32, got {got}")
    _check_dense(name, what, scale)
    if scale.shape != shape:
        raise ValueError(f"{name}: {what} must be {tuple(shape)}, got {tuple(scale.shape)}")
    check_device(name, what, scale, x)


def _checked_flag(name: str, unsigned: bool) -> bool:
    if not isinstance(unsigned, bool):
        raise TypeError(f"{name}: unsigned must be True or False, got {type(unsigned).__name__}")
    return unsigned


def _linear_example(sizes: Sizes) -> dict[str, Any]:
    """fc1's arguments."""
    x, x_scale = rows_int8_ref(sizes.tokens())
    weight, scale = rows_int8_ref(sizes.randn(4 * sizes.width, sizes.width))
    return {"x": x, "x_scale": x_scale, "weight": weight, "weight_scale": scale.flatten(), "bias": None,
            "out_dtype": sizes.dtype}  # fmt: skip


def _integers(x: Tensor, unsigned: bool) -> tuple[Tensor, Tensor]:
    return empty_rows(x, torch.uint8 if unsigned else torch.int8)


_ROWS = KernelOp(
    "rows_int8",
    "(Tensor x, bool unsigned, str backend) -> (Tensor values, Tensor row_scale)",
    "",
    fake=_integers,
    reference=rows_int8_ref,
    home="int8",
    example=lambda sizes: {"x": sizes.tokens()},
)

_NORM = KernelOp(
    "norm_modulate_int8",
    "(Tensor x, Tensor shift, Tensor scale, float eps, bool unsigned, str backend) -> (Tensor h, Tensor row_scale)",
    "",
    fake=lambda x, shift, scale, eps, unsigned: _integers(x, unsigned),
    reference=norm_modulate_int8_ref,
    home="int8",
    example=lambda sizes: {"x": sizes.tokens(), **sizes.conditions("shift", "scale")},
)

_FUSED = KernelOp(
    "gate_residual_norm_modulate_int8",
    "(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps, Tensor? y_bias, Tensor? pos, "
    "bool unsigned, str backend) -> (Tensor x_out, Tensor h, Tensor row_scale)",
    "",
    fake=lambda x, y, gate, shift, scale, eps, y_bias, pos, unsigned: (empty(x), *_integers(x, unsigned)),
    reference=gate_residual_norm_modulate_int8_ref,
    home="int8",
    example=lambda sizes: {"x": sizes.tokens(), "y": sizes.tokens(), **sizes.conditions("gate", "shift", "scale")},
)

_GELU = KernelOp(
    "bias_gelu_int8",
    "(Tensor u, Tensor b, Tensor? factor, bool unsigned, str backend) -> (Tensor a, Tensor row_scale)",
    "",
    fake=lambda u, b, factor, unsigned: _integers(u, unsigned),
    reference=bias_gelu_int8_ref,
    home="int8",
    example=lambda sizes: {"u": sizes.tokens(widths=4), "b": sizes.randn(4 * sizes.width)},
)

_LINEAR = KernelOp(
    "linear_int8",
    "(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias, ScalarType out_dtype, str backend) "
    "-> Tensor out",
    "",
    fake=lambda x, x_scale, weight, weight_scale, bias, out_dtype: x.new_empty(
        (*x.shape[:-1], weight.shape[0]), dtype=out_dtype
    ),
    ours=("triton",),
    reference=linear_int8_ref,
    example=_linear_example,
    flops=lambda x, x_scale, weight, weight_scale, bias, out_dtype: 2 * math.prod(x) * weight[0],
)
