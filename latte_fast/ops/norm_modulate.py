"""norm_modulate: h = LN(x) * (1 + scale) + shift, without affine parameters of its own."""

import torch
from torch import Tensor

from latte_fast.ops.checks import check_groups, check_out_dtype, check_rows, checked_number, partners
from latte_fast.ops.registration import KernelOp, empty
from latte_fast.reference.functional import norm_modulate_ref


def norm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """LN(x) * (1 + scale) + shift.

    Args:
        x: (..., D), any leading strides.
        shift: (G, D), G dividing the rows of x; group g modulates the g-th run of rows. May be a view of (G, 6D).
        scale: as shift.
        out_dtype: of the result, by default x's.
    """
    check_rows("norm_modulate", "x", x)
    check_groups("norm_modulate", x, shift=shift, scale=scale)
    shift, scale = partners("norm_modulate", x, shift=shift, scale=scale)
    out_dtype = check_out_dtype("norm_modulate", out_dtype, x.dtype, x, scale)
    return _OP(x, shift, scale, checked_number("norm_modulate", "eps", eps), out_dtype)


_OP = KernelOp(
    "norm_modulate",
    "(Tensor x, Tensor shift, Tensor scale, float eps, ScalarType out_dtype, str backend) -> Tensor h",
    "(Tensor dh, Tensor x, Tensor scale, float eps, str backend) -> (Tensor dx, Tensor dshift, Tensor dscale)",
    fake=lambda x, shift, scale, eps, out_dtype: empty(x, out_dtype),
    like={"shift": "scale"},
    reference=norm_modulate_ref,
    example=lambda sizes: {"x": sizes.tokens(), **sizes.conditions("shift", "scale")},
    elementwise=8,
)
