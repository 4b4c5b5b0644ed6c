"""norm_modulate: h = LN(x) * (1 + scale) + shift, without affine parameters of its own."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.ops.checks import check_groups, check_out_dtype, check_rows, partners
from latte_fast.ops.platforms import kernel_probes
from latte_fast.ops.registration import call_directly, register_gradient, register_op
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
    out_dtype = check_out_dtype("norm_modulate", out_dtype or x.dtype, x, scale)
    backend = backends.choose("norm_modulate", x, shift, scale, eps, out_dtype)
    if backend == "reference":
        return norm_modulate_ref(x, shift, scale, eps, out_dtype=out_dtype)
    if call_directly(x, shift, scale):
        return _launchers(backend).norm_modulate_fwd(x, shift, scale, eps, out_dtype)
    return torch.ops.latte_fast.norm_modulate.default(x, shift, scale, eps, out_dtype, backend)


def _launchers(backend: str) -> ModuleType:
    if backend == "triton":
        from latte_fast.kernels import norm_modulate as launchers
    else:
        from latte_fast._ext import norm_modulate as launchers
    return launchers


def _forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float, out_dtype: torch.dtype, backend: str) -> Tensor:
    return _launchers(backend).norm_modulate_fwd(x, shift, scale, eps, out_dtype)


def _forward_fake(x: Tensor, shift: Tensor, scale: Tensor, eps: float, out_dtype: torch.dtype, backend: str) -> Tensor:
    return x.new_empty(x.shape, dtype=out_dtype)


def _backward(dh: Tensor, x: Tensor, scale: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return _launchers(backend).norm_modulate_bwd(dh.contiguous(), x, scale, eps)


def _backward_fake(dh: Tensor, x: Tensor, scale: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, _, scale, ctx.eps, _, ctx.backend = inputs
    ctx.save_for_backward(x, scale)


def _gradient(ctx: Any, dh: Tensor) -> tuple:
    x, scale = ctx.saved_tensors
    grads = torch.ops.latte_fast.norm_modulate_backward.default(dh, x, scale, ctx.eps, ctx.backend)
    return (*grads, None, None, None)


register_op(
    "norm_modulate",
    "(Tensor x, Tensor shift, Tensor scale, float eps, ScalarType out_dtype, str backend) -> Tensor",
    _forward,
    _forward_fake,
)
register_op(
    "norm_modulate_backward",
    "(Tensor dh, Tensor x, Tensor scale, float eps, str backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
register_gradient("norm_modulate", _setup, _gradient)
backends.register(
    "norm_modulate",
    kernel_probes(_launchers),
)
