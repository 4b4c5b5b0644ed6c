"""decode_attention on Triton: a program a head, or several that share its keys where there are few heads.

The first program of a head begins with the new token, which it writes into the cache; the others see cached keys alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles

MAX_WIDTH = 256
# keys of the cache that are worth a program of their own
LEAST_KEYS = 128


@triton.jit(do_not_specialize=["L", "splits"])
def decode_attention_fwd_kernel(
    qkv_ptr, cache_ptr, position_ptr, out_ptr, partial_ptr, s_qb, s_qi, s_qh, s_ci, s_cb, s_ch, s_cl, L, splits, scale,
    H: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Writes out (B, H, K), or with SPLIT partial (B*H, splits, BLOCK_K + 2): a sum of values, then maximum and sum."""
    i_split, i_s = tl.program_id(0) % splits, (tl.program_id(0) // splits).to(tl.int64)
    i_b, i_h = i_s // H, i_s % H
    position = tl.load(position_ptr)
    filled = tl.minimum(position, L).to(tl.int32)
    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < K
    p_q = qkv_ptr + i_b * s_qb + i_h * s_qh + o_k
    p_k = cache_ptr + i_b * s_cb + i_h * s_ch
    p_v = p_k + s_ci
    # scores to the base 2
    b_q = tl.load(p_q, mask=m_k, other=0.0).to(tl.float32) * (scale * 1.4426950408889634)
    b_k = tl.load(p_q + s_qi, mask=m_k, other=0.0)
    b_v = tl.load(p_q + 2 * s_qi, mask=m_k, other=0.0)
    first = i_split == 0
    m_new = m_k & first & (position >= 0) & (position < L)
    tl.store(p_k + position * s_cl + o_k, b_k, mask=m_new)
    tl.store(p_v + position * s_cl + o_k, b_v, mask=m_new)
    b_max = tl.where(first, tl.sum(b_q * b_k.to(tl.float32), 0), float("-inf"))
    b_sum = tl.where(first, 1.0, 0.0)
    b_out = tl.where(first & m_k, b_v.to(tl.float32), 0.0)
    share = tl.cdiv(tl.cdiv(filled, splits), BLOCK_N) * BLOCK_N
    start = i_split * share
    stop = tl.minimum(start + share, filled)
    for i_n in tl.range(start, stop, BLOCK_N, num_stages=STAGES):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = o_n < stop
        o_kv = o_n.to(tl.int64)[:, None] * s_cl + o_k[None, :]
        m_kv = m_n[:, None] & m_k[None, :]
        b_keys = tl.load(p_k + o_kv, mask=m_kv, other=0.0).to(tl.float32)  # (BLOCK_N, BLOCK_K)
        b_values = tl.load(p_v + o_kv, mask=m_kv, other=0.0).to(tl.float32)
        b_s = tl.where(m_n, tl.sum(b_keys * b_q[None, :], 1), float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 0))
        b_shrink = tl.exp2(b_max - b_new)
        b_p = tl.exp2(b_s - b_new)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 0)
        b_out = b_out * b_shrink + tl.sum(b_p[:, None] * b_values, 0)
        b_max = b_new
    if SPLIT:
        p_partial = partial_ptr + (i_s * splits + i_split) * (BLOCK_K + 2)
        tl.store(p_partial + o_k, b_out)
        tl.store(p_partial + BLOCK_K, b_max)
        tl.store(p_partial + BLOCK_K + 1, b_sum)
    else:
        tl.store(out_ptr + i_s * K + o_k, (b_out / b_sum).to(out_ptr.dtype.element_ty), mask=m_k)


@triton.jit(do_not_specialize=["splits"])
def join_splits_kernel(
    partial_ptr, out_ptr, splits, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr
):  # fmt: skip
    """out (B*H, K) of partial (B*H, splits, BLOCK_K + 2); a program without keys has the maximum -inf and the sum 0."""
    i_s = tl.program_id(0).to(tl.int64)
    o_s, o_k = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_K)
    m_s = o_s < splits
    p_partial = partial_ptr + (i_s * splits + o_s) * (BLOCK_K + 2)
    b_max = tl.load(p_partial + BLOCK_K, mask=m_s, other=float("-inf"))
    b_sum = tl.load(p_partial + BLOCK_K + 1, mask=m_s, other=0.0)
    b_out = tl.load(p_partial[:, None] + o_k[None, :], mask=m_s[:, None], other=0.0)
    b_share = tl.exp2(b_max - tl.max(b_max, 0))
    b_out = tl.sum(b_out * b_share[:, None], 0) / tl.sum(b_sum * b_share, 0)
    tl.store(out_ptr + i_s * K + o_k, b_out.to(out_ptr.dtype.element_ty), mask=o_k < K)


def config(qkv: Tensor, cache: Tensor) -> tiles.DecodeConfig:
    """128 keys at a time; so many programs a head that all multiprocessors have one."""
    (batch, _, heads, K), length = qkv.shape, cache.shape[3]
    spare = tiles.gpu_of(qkv.device).multiprocessors // max(1, batch * heads)
    splits = max(1, min(spare, length // LEAST_KEYS))
    block_n = max(16, min(128, tiles.power_of_2(length), 8192 // tiles.power_of_2(K)))
    default = tiles.DecodeConfig(block_n=block_n, warps=4, stages=2, splits=splits)
    name = f"B{batch}-H{heads}-L{length}-K{K}-{rows.NAMES[qkv.dtype]}"
    c = tiles.choose("decode_attention_fwd", name, default, qkv.device)
    assert isinstance(c, tiles.DecodeConfig)
    return c


def decode_attention_fwd(qkv: Tensor, cache: Tensor, position: Tensor, scale: float) -> Tensor:
    """qkv (B, 3, H, K), cache (2, B, H, L, K), position (1,) -> (B, H*K)."""
    batch, _, heads, K = qkv.shape
    out = rows.empty((batch, heads * K), qkv.dtype, qkv.device)
    if batch:
        c, block_k = config(qkv, cache), tiles.power_of_2(K)
        partial = out
        if c.splits > 1:
            shape = (batch * heads, c.splits, block_k + 2)
            partial = torch.empty(shape, dtype=torch.float32, device=qkv.device)
        with rows.guard(qkv):
            decode_attention_fwd_kernel[(batch * heads * c.splits,)](
                qkv, cache, position, out, partial, *qkv.stride()[:3], *cache.stride()[:4], cache.shape[3], c.splits,
                scale, H=heads, K=K, BLOCK_K=block_k, BLOCK_N=c.block_n, SPLIT=c.splits > 1, STAGES=c.stages,
                num_warps=c.warps, enable_fp_fusion=True,
            )  # fmt: skip
            if c.splits > 1:
                join_splits_kernel[(batch * heads,)](
                    partial, out, c.splits, K=K, BLOCK_K=block_k, BLOCK_S=tiles.power_of_2(c.splits), num_warps=1,
                )  # fmt: skip
    return rows.rounded(out, qkv.dtype)


def why_not(qkv: Tensor, cache: Tensor, *others: object) -> str | None:
    if qkv.dtype not in rows.NAMES:
        return f"the Triton kernels take fp32, bf16 and fp16, got {qkv.dtype}"
    if qkv.shape[3] > MAX_WIDTH:
        return f"the Triton kernel takes heads up to {MAX_WIDTH} wide, got {qkv.shape[3]}"
    return None
