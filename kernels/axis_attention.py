"""axis_attention on Triton: a program takes several short sequences at once, or streams the keys of a long one."""

from typing import Any

import torch
from torch import Tensor

from latte_fast.kernels import rows
from latte_fast.kernels.attention_tiles import Rope
from latte_fast.kernels.flash_attention_bwd import flash_attention_bwd
from latte_fast.kernels.flash_attention_fwd import flash_attention_fwd
from latte_fast.kernels.packed_attention import LONGEST, packed_attention_bwd, packed_attention_fwd


def packs(q: Tensor, k: Tensor, axis: str) -> bool:
    """Whether the sequences are short enough to be one tile each."""
    return max(q.shape[2], k.shape[2]) <= LONGEST if axis == "space" else q.shape[1] <= LONGEST


def axis_attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    rope: Rope | None,
    scale: float,
    key_mask: Tensor | None,
    need_lse: bool,
) -> tuple[Tensor, Tensor]:
    """(out (B, F, Nq, H*K), lse (B, F, Nq, H) fp32 or empty) of q (B, F, Nq, H, K) and k, v (B, F, Nk, H, K)."""
    out = rows.empty(q.shape, q.dtype, q.device)
    lse = torch.empty(q.shape[:-1] if need_lse else (0,), dtype=torch.float32, device=q.device)
    if q.numel():
        forward = packed_attention_fwd if packs(q, k, axis) else flash_attention_fwd
        forward(q, k, v, axis, rope, scale, key_mask, out, lse)
    return rows.rounded(out, q.dtype).flatten(-2), lse


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
    """Writes dq, dk, dv, which may be views of one packed tensor, and dbias (3*H*K), their sums over all tokens.

    The kernels add a sequence's sums, but for long sequences with rope: there dq and dk are rotated by a pass after
    them, and the sums are passes as well.
    """
    if q.numel() == 0:
        if dbias is not None:
            dbias.zero_()
        return
    grads: tuple[Tensor, ...] = (dq, dk, dv)
    if rows.interpreted() and q.dtype == torch.bfloat16:
        grads = tuple(torch.empty_like(g, dtype=torch.float32) for g in grads)
    fused = dbias if packs(q, k, axis) or rope is None else None
    if packs(q, k, axis):
        packed_attention_bwd(dout, q, k, v, axis, rope, scale, key_mask, *grads, dbias=fused)
    else:
        flash_attention_bwd(dout, q, k, v, out, lse, axis, rope, scale, key_mask, *grads, dbias=fused)
    if dbias is not None and fused is None:
        dbias.copy_(torch.stack([g.float().sum((0, 1, 2)) for g in grads]).flatten())
    if grads[0] is not dq:
        for got, want in zip(grads, (dq, dk, dv), strict=True):
            want.copy_(got)


def why_not(q: Tensor, *others: Any) -> str | None:
    if q.dtype not in rows.NAMES:
        return f"the Triton kernels take fp32, bf16 and fp16, got {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"the Triton kernels take a head width that is a multiple of 8 up to 128, got {q.shape[-1]}"
    return None
