"""pooled_norm: the mean over space or time of a modulated norm, whose rows are never written."""

import torch
from torch import Tensor

from latte_fast.ops.checks import check_groups, check_out_dtype, check_rows, checked_number, partners
from latte_fast.ops.registration import KernelOp
from latte_fast.reference.functional import POOLED, pooled_norm_ref

_NAME = "pooled_norm"


def pooled_norm(
    x: Tensor, shift: Tensor, scale: Tensor, axis: str, eps: float = 1e-6, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The mean over one axis of LN(x), times 1 + scale, plus shift.

    One read of x and a write of the means, (B, F, 1, D) over space or (B, 1, N, D) over time.

    Args:
        x: (B, F, N, D), any leading strides.
        shift: (G, D), G dividing the B * F frames over space, the B clips over time: a mean has one row of it. May be a
            view of (G, 6D).
        scale: as shift.
        axis: "space", the mean over N of each frame, or "time", over F at each patch.
        eps: added to the variance.
        out_dtype: of the result, by default x's.
    """
    check_rows(_NAME, "x", x)
    if x.dim() != 4:
        raise ValueError(f"{_NAME}: x must be (B, F, N, D), got {tuple(x.shape)}")
    if not isinstance(axis, str) or axis not in POOLED:
        raise ValueError(f"{_NAME}: axis must be 'space' or 'time', got {axis!r:.40}")
    check_groups(_NAME, x, shift=shift, scale=scale)
    groups, what = shift.shape[0], "frames" if axis == "space" else "clips"
    parts = x.shape[0] * x.shape[1] if axis == "space" else x.shape[0]
    if groups and parts % groups:
        raise ValueError(f"{_NAME}: shift must be (G, D) with G dividing the {parts} {what}, got G = {groups}")
    shift, scale = partners(_NAME, x, shift=shift, scale=scale)
    out_dtype = check_out_dtype(_NAME, out_dtype, x.dtype, x, scale)
    return _OP(x, shift, scale, axis, checked_number(_NAME, "eps", eps), out_dtype)


def _fake(x: Tensor, shift: Tensor, scale: Tensor, axis: str, eps: float, out_dtype: torch.dtype) -> Tensor:
    size = list(x.shape)
    size[POOLED[axis]] = 1
    return x.new_empty(size, dtype=out_dtype)


_OP = KernelOp(
    _NAME,
    "(Tensor x, Tensor shift, Tensor scale, str axis, float eps, ScalarType out_dtype, str backend) -> Tensor h",
    "(Tensor dh, Tensor x, Tensor scale, str axis, float eps, str backend) "
    "-> (Tensor dx, Tensor dshift, Tensor dscale)",
    fake=_fake,
    like={"shift": "scale"},
    reference=pooled_norm_ref,
    example=lambda sizes: {"x": sizes.tokens(), **sizes.conditions("shift", "scale"), "axis": "space"},
    more_examples=lambda sizes: [("time", {"x": sizes.tokens(), **sizes.conditions("shift", "scale"), "axis": "time"})],
    elementwise=8,
)
