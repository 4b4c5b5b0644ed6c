"""gate_residual_norm_modulate: x' = x + gate * (y + y_bias) + pos; h = LN(x') * (1 + scale) + shift."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.ops.checks import (
    check_device,
    check_groups,
    check_like,
    check_out_dtype,
    check_rows,
    checked_vector,
    partners,
)
from latte_fast.ops.platforms import kernel_probes
from latte_fast.ops.registration import call_directly, register_gradient, register_op
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
        _check_pos(pos, x)
        pos = (pos if pos.stride(-1) == 1 else pos.contiguous()).to(x.dtype)
    out_dtype = check_out_dtype(_OP, out_dtype or shift.dtype, x, shift)
    backend = backends.choose(_OP, x, y, gate, shift, scale, eps, y_bias, pos, out_dtype)
    if backend == "reference":
        return gate_residual_norm_modulate_ref(
            x, y, gate, shift, scale, eps, y_bias=y_bias, pos=pos, out_dtype=out_dtype
        )
    args = (x, y, gate, shift, scale, eps, y_bias, pos, out_dtype)
    if call_directly(x, y, gate, shift, scale, y_bias, pos):
        return _launchers(backend).gate_residual_norm_modulate_fwd(*args)
    return torch.ops.latte_fast.gate_residual_norm_modulate.default(*args, backend)


def _check_pos(pos: Tensor, x: Tensor) -> None:
    if not isinstance(pos, Tensor):
        raise TypeError(f"{_OP}: pos must be a tensor, got {type(pos).__name__}")
    lengths = zip(reversed(pos.shape), reversed(x.shape), strict=False)
    if (
        pos.dim() == 0
        or pos.dim() > x.dim()
        or any(p not in (1, n) for p, n in lengths)
        or pos.shape[-1:] != x.shape[-1:]
    ):
        raise ValueError(f"{_OP}: pos must broadcast to x's shape {tuple(x.shape)}, got {tuple(pos.shape)}")
    check_device(_OP, "pos", pos, x)


def _launchers(backend: str) -> ModuleType:
    if backend == "triton":
        from latte_fast.kernels import gate_residual_norm_modulate as launchers
    else:
        from latte_fast._ext import gate_residual_norm_modulate as launchers
    return launchers


def _forward(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    y_bias: Tensor | None,
    pos: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _launchers(backend).gate_residual_norm_modulate_fwd(x, y, gate, shift, scale, eps, y_bias, pos, out_dtype)


def _forward_fake(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    y_bias: Tensor | None,
    pos: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=out_dtype)


_Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _backward(
    dx_out: Tensor | None,
    dh: Tensor | None,
    x_out: Tensor,
    y: Tensor,
    y_bias: Tensor | None,
    gate: Tensor,
    scale: Tensor,
    eps: float,
    backend: str,
) -> _Grads:
    dx_out, dh = (None if d is None else d.contiguous() for d in (dx_out, dh))
    *grads, dy_bias = _launchers(backend).gate_residual_norm_modulate_bwd(
        dx_out, dh, x_out, y, y_bias, gate, scale, eps
    )
    return (*grads, y.new_empty(0) if dy_bias is None else dy_bias)


def _backward_fake(
    dx_out: Tensor | None,
    dh: Tensor | None,
    x_out: Tensor,
    y: Tensor,
    y_bias: Tensor | None,
    gate: Tensor,
    scale: Tensor,
    eps: float,
    backend: str,
) -> _Grads:
    group = [gate.new_empty(gate.shape) for _ in range(3)]
    bias = y.new_empty(0 if y_bias is None else y_bias.shape[0])
    return x_out.new_empty(x_out.shape), y.new_empty(y.shape), group[0], group[1], group[2], bias


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, y, gate, _, scale, ctx.eps, y_bias, pos, _, ctx.backend = inputs
    ctx.pos_shape = None if pos is None else pos.shape
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], y, y_bias, gate, scale)


def _gradient(ctx: Any, dx_out: Tensor | None, dh: Tensor | None) -> tuple:
    if dx_out is None and dh is None:
        return (None,) * 10
    x_out, y, y_bias, gate, scale = ctx.saved_tensors
    dx, dy, dgate, dshift, dscale, dy_bias = torch.ops.latte_fast.gate_residual_norm_modulate_backward.default(
        dx_out, dh, x_out, y, y_bias, gate, scale, ctx.eps, ctx.backend
    )
    dpos = dx.sum_to_size(ctx.pos_shape) if ctx.needs_input_grad[7] else None
    return dx, dy, dgate, dshift, dscale, None, dy_bias if y_bias is not None else None, dpos, None, None


register_op(
    _OP,
    "(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale, float eps, Tensor? y_bias, Tensor? pos, "
    "ScalarType out_dtype, str backend) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
register_op(
    f"{_OP}_backward",
    "(Tensor? dx_out, Tensor? dh, Tensor x_out, Tensor y, Tensor? y_bias, Tensor gate, Tensor scale, float eps, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
register_gradient(_OP, _setup, _gradient)
backends.register(
    _OP,
    kernel_probes(_launchers),
)
