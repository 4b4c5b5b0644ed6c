"""axis_attention_qkv: axis_attention on packed qkv, whose backward writes one packed gradient."""

from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.ops import attention_choice
from latte_fast.ops import attention_libraries as libraries
from latte_fast.ops.axis_attention import check_extras, check_qkv, checked_scale, launchers, rope_pair
from latte_fast.ops.registration import call_directly, records, register_gradient, register_op
from latte_fast.reference.functional import Rope, axis_attention_qkv_ref

_OP = "axis_attention_qkv"


def axis_attention_qkv(qkv: Tensor, axis: str, rope: Rope | None = None, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v over one axis -> (B, F, N, H*K).

    Args:
        qkv: (B, F, N, 3, H, K) as one linear layer leaves it, any strides but the last.
        axis: "space" attends over N inside a frame, "time" over F at a patch position.
        rope: (cos, sin), each (F, K/2) fp32, turning the pairs (2i, 2i+1) of q and k; time axis only.
        scale: by default K**-0.5.
    """
    if qkv.dim() != 6 or qkv.shape[3] != 3:
        raise ValueError(f"{_OP}: qkv must be (B, F, N, 3, H, K), got {tuple(qkv.shape)}")
    auto = backends.autocast_dtype(qkv.device.type)
    if auto is not None and qkv.dtype != torch.float64:
        qkv = qkv.to(auto)
    q, k, v = qkv.unbind(3)
    check_qkv(_OP, q, k, v, axis)
    check_extras(_OP, q, k, axis, rope, None)
    scale = checked_scale(_OP, q, scale)
    backend = attention_choice.choose(q, k, v, axis, rope, scale, None)
    if backend == "reference":
        return axis_attention_qkv_ref(qkv, axis, rope, scale)
    if backend in libraries.LIBRARIES:
        return libraries.LIBRARIES[backend](q, k, v, axis, scale)
    if call_directly(qkv):
        return launchers(backend).axis_attention_fwd(q, k, v, axis, rope, scale, None, False)[0]
    cos, sin = rope or (None, None)
    need_lse = records(qkv)
    return torch.ops.latte_fast.axis_attention_qkv.default(qkv, axis, cos, sin, scale, need_lse, backend)[0]


def _forward(
    qkv: Tensor, axis: str, cos: Tensor | None, sin: Tensor | None, scale: float, need_lse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.unbind(3)
    return launchers(backend).axis_attention_fwd(q, k, v, axis, rope_pair(cos, sin), scale, None, need_lse)


def _forward_fake(
    qkv: Tensor, axis: str, cos: Tensor | None, sin: Tensor | None, scale: float, need_lse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    b, f, n, _, h, width = qkv.shape
    lse = qkv.new_empty((b, f, n, h) if need_lse else (0,), dtype=torch.float32)
    return qkv.new_empty(b, f, n, h * width), lse


def _backward(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    axis: str,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float,
    backend: str,
) -> Tensor:
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    launchers(backend).axis_attention_bwd(
        dout.contiguous(), *qkv.unbind(3), out, lse, axis, rope_pair(cos, sin), scale, None, *dqkv.unbind(3)
    )
    return dqkv


def _backward_fake(dout: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.axis, cos, sin, ctx.scale, _, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, *output, cos, sin)


def _gradient(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple:
    if dout is None:
        return (None,) * 7
    qkv, out, lse, cos, sin = ctx.saved_tensors
    dqkv = torch.ops.latte_fast.axis_attention_qkv_backward.default(
        dout, qkv, out, lse, ctx.axis, cos, sin, ctx.scale, ctx.backend
    )
    return (dqkv, *(None,) * 6)


register_op(
    _OP,
    "(Tensor qkv, str axis, Tensor? cos, Tensor? sin, float scale, bool need_lse, str backend) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
register_op(
    f"{_OP}_backward",
    "(Tensor dout, Tensor qkv, Tensor out, Tensor lse, str axis, Tensor? cos, Tensor? sin, float scale, str backend) "
    "-> Tensor",
    _backward,
    _backward_fake,
)
register_gradient(_OP, _setup, _gradient)
