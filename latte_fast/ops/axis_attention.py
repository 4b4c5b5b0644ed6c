"""axis_attention: softmax attention over space or time, q, k, v read where the linear layers left them."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.ops import attention_choice
from latte_fast.ops import attention_libraries as libraries
from latte_fast.ops.checks import FLOATS, check_device
from latte_fast.ops.platforms import kernel_probes
from latte_fast.ops.registration import call_directly, records, register_gradient, register_op
from latte_fast.reference.functional import Rope, axis_attention_ref

_OP = "axis_attention"


def axis_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    rope: Rope | None = None,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v over one axis -> (B, F, Nq, H*K).

    Args:
        q: (B, F, Nq, H, K), any strides but the last; K a multiple of 8 up to 128.
        k: (B, F, Nk, H, K).
        v: as k.
        axis: "space" attends over Nk inside a frame; "time" over F at a patch position, with Nq = Nk.
        rope: (cos, sin), each (F, K/2) fp32, turning the pairs (2i, 2i+1) of q and k; time axis only.
        scale: by default K**-0.5.
        key_mask: bool, True where a key counts, (B, Nk) for space and (B, F) for time; a query with none gives 0.
    """
    auto = backends.autocast_dtype(q.device.type)
    if auto is not None and q.dtype != torch.float64:
        q, k, v = q.to(auto), k.to(auto), v.to(auto)
    check_qkv(_OP, q, k, v, axis)
    check_extras(_OP, q, k, axis, rope, key_mask)
    scale = checked_scale(_OP, q, scale)
    backend = attention_choice.choose(q, k, v, axis, rope, scale, key_mask)
    if backend == "reference":
        return axis_attention_ref(q, k, v, axis, rope, scale, key_mask)
    if backend in libraries.LIBRARIES:
        return libraries.LIBRARIES[backend](q, k, v, axis, scale)
    if call_directly(q, k, v):
        return launchers(backend).axis_attention_fwd(q, k, v, axis, rope, scale, key_mask, False)[0]
    cos, sin = rope or (None, None)
    need_lse = records(q, k, v)
    return torch.ops.latte_fast.axis_attention.default(q, k, v, axis, cos, sin, scale, key_mask, need_lse, backend)[0]


def checked_scale(op: str, q: Tensor, scale: float | None) -> float:
    if scale is None:
        return float(q.shape[-1] ** -0.5)
    if not scale >= 0:
        raise ValueError(f"{op}: scale must be at least 0, got {scale}")
    return float(scale)


def check_qkv(op: str, q: Tensor, k: Tensor, v: Tensor, axis: str) -> None:
    if axis not in ("space", "time"):
        raise ValueError(f"{op}: axis must be 'space' or 'time', got {axis!r}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in FLOATS or x.dtype != q.dtype:
            raise TypeError(f"{op}: {name} must be fp32, bf16, fp16 or fp64 as q is, got {x.dtype}")
        if x.dim() != 5 or 0 in x.shape[1:]:
            raise ValueError(f"{op}: {name} must be (B, F, N, H, K) with no empty axis but B, got {tuple(x.shape)}")
        if x.stride(-1) != 1:
            raise ValueError(f"{op}: {name} must have a contiguous last dim, got strides {x.stride()}")
        check_device(op, name, x, q)
    if k.shape != v.shape:
        raise ValueError(f"{op}: v must have k's shape {tuple(k.shape)}, got {tuple(v.shape)}")
    free = 2 if axis == "space" else None
    if any(q.shape[i] != k.shape[i] for i in range(5) if i != free):
        raise ValueError(f"{op}: k must match q {tuple(q.shape)} but in Nk on the space axis, got {tuple(k.shape)}")
    width = q.shape[-1]
    if width % 8 or width > 128:
        raise ValueError(f"{op}: q must have a head width K that is a multiple of 8 up to 128, got K = {width}")


def check_extras(op: str, q: Tensor, k: Tensor, axis: str, rope: Rope | None, key_mask: Tensor | None) -> None:
    if rope is not None:
        if axis != "time":
            raise ValueError(f"{op}: rope must be None on the space axis, got tables")
        want = (q.shape[1], q.shape[-1] // 2)
        for table in rope:
            if tuple(table.shape) != want or table.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{op}: rope must be two fp32 (F, K/2) = {want} tables, got {tuple(table.shape)}")
            check_device(op, "rope", table, q)
    if key_mask is not None:
        want = (q.shape[0], k.shape[2] if axis == "space" else k.shape[1])
        if tuple(key_mask.shape) != want or key_mask.dtype != torch.bool:
            raise ValueError(f"{op}: key_mask must be bool {want}, got {key_mask.dtype} {tuple(key_mask.shape)}")
        check_device(op, "key_mask", key_mask, q)


def launchers(backend: str) -> ModuleType:
    if backend == "triton":
        from latte_fast.kernels import axis_attention as module
    else:
        from latte_fast._ext import axis_attention as module
    return module


def rope_pair(cos: Tensor | None, sin: Tensor | None) -> Rope | None:
    return None if cos is None or sin is None else (cos, sin)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float,
    key_mask: Tensor | None,
    need_lse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return launchers(backend).axis_attention_fwd(q, k, v, axis, rope_pair(cos, sin), scale, key_mask, need_lse)


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float,
    key_mask: Tensor | None,
    need_lse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    b, f, n, h, width = q.shape
    return q.new_empty(b, f, n, h * width), q.new_empty((b, f, n, h) if need_lse else (0,), dtype=torch.float32)


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    axis: str,
    cos: Tensor | None,
    sin: Tensor | None,
    scale: float,
    key_mask: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    launchers(backend).axis_attention_bwd(
        dout.contiguous(), q, k, v, out, lse, axis, rope_pair(cos, sin), scale, key_mask, dq, dk, dv
    )
    return dq, dk, dv


def _backward_fake(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.axis, cos, sin, ctx.scale, key_mask, _, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, cos, sin, key_mask)


def _gradient(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple:
    if dout is None:
        return (None,) * 10
    q, k, v, out, lse, cos, sin, key_mask = ctx.saved_tensors
    grads = torch.ops.latte_fast.axis_attention_backward.default(
        dout, q, k, v, out, lse, ctx.axis, cos, sin, ctx.scale, key_mask, ctx.backend
    )
    return (*grads, *(None,) * 7)


register_op(
    _OP,
    "(Tensor q, Tensor k, Tensor v, str axis, Tensor? cos, Tensor? sin, float scale, Tensor? key_mask, bool need_lse, "
    "str backend) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
register_op(
    f"{_OP}_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, str axis, Tensor? cos, Tensor? sin, "
    "float scale, Tensor? key_mask, str backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
register_gradient(_OP, _setup, _gradient)
backends.register(
    _OP,
    {
        **kernel_probes(launchers),
        "flash_attn": libraries.why_not_flash_attn,
        "xformers": libraries.why_not_xformers,
        "sdpa": libraries.why_not_sdpa,
        "cudnn": libraries.why_not_cudnn,
    },
)
