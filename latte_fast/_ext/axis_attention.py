"""Launches the C++ kernels of axis_attention."""

from typing import Any

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import NO_GROUPS, NO_HEADS, groups, heads

Rope = tuple[Tensor, Tensor]


def why_not(*args: Any) -> None:
    """These kernels serve whatever the op accepts."""


def _launch(
    name: str,
    axis: str,
    tensors: list[tuple[int, ...]],
    q: Tensor,
    k: Tensor,
    lse: Tensor | None,
    rope: Rope | None,
    scale: float,
    key_mask: Tensor | None,
    qkv_bias: Tensor | None = None,
    dbias: Tensor | None = None,
) -> None:
    b, f, nq, h, width = q.shape
    step = h * width * q.element_size()
    tables = () if rope is None else tuple(r.to(torch.promote_types(q.dtype, torch.float32)).contiguous() for r in rope)
    mask = None if key_mask is None else key_mask if key_mask.stride(1) == 1 else key_mask.contiguous()
    getattr(_ext.load(), f"{axis}_attention_{name}")(
        tensors,
        (0, 0, 0) if qkv_bias is None else tuple(qkv_bias.data_ptr() + i * step for i in range(3)),
        0 if lse is None else lse.data_ptr(),
        *((r.data_ptr() for r in tables) if tables else (0, 0)),
        0 if mask is None else mask.data_ptr(),
        0 if mask is None else mask.stride(0),
        NO_GROUPS if dbias is None else groups(dbias),
        (b, f, nq, k.shape[2], h, width),
        scale,
        torch.get_num_threads(),
    )


def axis_attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    rope: Rope | None,
    scale: float,
    key_mask: Tensor | None,
    need_lse: bool,
    qkv_bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse); qkv_bias (3*H*K) in q's dtype is added to q, k, v as they are read (inference: no gradient)."""
    b, f, n, h, width = q.shape
    out = torch.empty((b, f, n, h * width), dtype=q.dtype) if out is None else out
    lse = torch.empty((b, f, n, h) if need_lse else (0,), dtype=torch.float32)
    if out.numel():
        tensors = [heads(q), heads(k), heads(v), heads(out.view(b, f, n, h, width)), *[NO_HEADS] * 4]
        _launch("fwd", axis, tensors, q, k, lse if need_lse else None, rope, scale, key_mask, qkv_bias)
    return out, lse


def axis_attention_bwd(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    axis: str,
    rope: Rope | None,
    scale: float,
    key_mask: Tensor | None,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias: Tensor | None = None,
) -> None:
    """Writes the gradients of q, k, v into dq, dk, dv, which may be views of one packed tensor.

    dbias (3*H*K) is written too where it is given: the sums of dq, dk, dv over all tokens.
    """
    if not lse.numel() and q.numel():
        raise RuntimeError("axis_attention: the backward needs the forward's lse, got none")
    if q.numel():
        per_head = (x.view(q.shape) for x in (out, dout))
        tensors = [heads(x) for x in (q, k, v, *per_head, dq, dk, dv)]
        _launch("bwd", axis, tensors, q, k, lse, rope, scale, key_mask, dbias=dbias)
    elif dbias is not None:
        dbias.zero_()
