"""causal_attention on Triton, forward: blocks of keys that all queries of a program see, then those with a mask.

All tokens see a prefix, so the blocks without a mask end at it or at the program's first query, whichever is last.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.attention_tiles import (
    dot_heads,
    load_heads,
    moved,
    offset,
    place,
    problem,
    store_heads,
    strides,
)
from latte_fast.kernels.flash_attention_fwd import config


@triton.jit
def seen(b_s, o_q, o_k, prefix):
    """Scores with -inf where a key o_k is hidden from a query o_q; a key past the end is later than every query."""
    return tl.where((o_k <= o_q) | (o_k < prefix), b_s, float("-inf"))


@triton.jit
def attend_block(
    b_q0, b_q1, p_k, p_v, i_k, o_q, b_max, b_sum, b_out0, b_out1, s_kt, s_vt, L, prefix, scale,
    K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr, ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds a block of keys to the online softmax of a block of queries; `scale` is to the base 2."""
    o_k = i_k + tl.arange(0, BLOCK_N)
    m_k = (o_k < L)[:, None] if MASKED else (o_k >= 0)[:, None]
    b_k0, b_k1 = load_heads(moved(p_k, i_k, s_kt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_N, K_MAIN)
    b_v0, b_v1 = load_heads(moved(p_v, i_k, s_vt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)
    b_s = dot_heads(b_q0, b_q1, b_k0, b_k1, K_TAIL)
    if MASKED:
        b_s = seen(b_s, o_q[:, None], o_k[None, :], prefix)
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)
    b_shrink = tl.exp2(b_max - b_new)
    b_p = tl.exp2(b_s * scale - b_new[:, None])
    b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
    b_p = b_p.to(b_v0.dtype)
    b_out0 = tl.dot(b_p, b_v0, b_out0 * b_shrink[:, None], input_precision="ieee")
    if K_TAIL > 0:
        b_out1 = tl.dot(b_p, b_v1, b_out1 * b_shrink[:, None], input_precision="ieee")
    return b_new, b_sum, b_out0, b_out1


@triton.jit
def ends(i_m, L, prefix, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(end of the blocks of keys that every query of block i_m sees whole, end of the keys that any of them sees)."""
    whole = tl.maximum(prefix, i_m * BLOCK_M + 1) // BLOCK_N * BLOCK_N
    return whole, tl.minimum(tl.maximum(prefix, (i_m + 1) * BLOCK_M), L)


@triton.jit(do_not_specialize=["blocks", "outer", "prefix"])
def causal_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr,
    s_qb, s_qo, s_qt, s_qh, s_kb, s_ko, s_kt, s_kh, s_vb, s_vo, s_vt, s_vh, s_outb, s_outo, s_outt, s_outh,
    s_lseb, s_lseo, s_lset, blocks, outer, L, prefix, scale,
    H: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_LSE: tl.constexpr, ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    scale *= 1.4426950408889634
    i_m, i_b, i_o, i_h = place(tl.program_id(0), blocks, outer, H)
    # the last queries see most keys, and their programs begin first
    i_m = blocks - 1 - i_m
    o_q = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_q = (o_q < L)[:, None]
    p_q = q_ptr + offset(i_b, i_o, i_h, o_q, s_qb, s_qo, s_qt, s_qh, ALIGN)
    b_q0, b_q1 = load_heads(p_q, m_q, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_M, K_MAIN)
    b_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    b_out0 = tl.zeros([BLOCK_M, K_MAIN], dtype=tl.float32)
    b_out1 = tl.zeros([BLOCK_M, K_TAIL if K_TAIL > 0 else 16], dtype=tl.float32)
    p_k = k_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_kb, s_ko, s_kt, s_kh, ALIGN)
    p_v = v_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_vb, s_vo, s_vt, s_vh, ALIGN)
    whole, last = ends(i_m, L, prefix, BLOCK_M, BLOCK_N)
    for i_k in tl.range(0, whole, BLOCK_N, num_stages=STAGES):
        b_max, b_sum, b_out0, b_out1 = attend_block(
            b_q0, b_q1, p_k, p_v, i_k, o_q, b_max, b_sum, b_out0, b_out1, s_kt, s_vt, L, prefix, scale,
            K, K_MAIN, K_TAIL, ALIGN, UPCAST, BLOCK_N, False,
        )  # fmt: skip
    for i_k in tl.range(whole, last, BLOCK_N, num_stages=1):
        b_max, b_sum, b_out0, b_out1 = attend_block(
            b_q0, b_q1, p_k, p_v, i_k, o_q, b_max, b_sum, b_out0, b_out1, s_kt, s_vt, L, prefix, scale,
            K, K_MAIN, K_TAIL, ALIGN, UPCAST, BLOCK_N, True,
        )  # fmt: skip
    p_out = out_ptr + offset(i_b, i_o, i_h, o_q, s_outb, s_outo, s_outt, s_outh, ALIGN)
    store_heads(p_out, b_out0 / b_sum[:, None], b_out1 / b_sum[:, None], m_q, K, K_MAIN, K_TAIL)
    if HAS_LSE:
        p_lse = lse_ptr + i_b * s_lseb + i_o * s_lseo + i_h + o_q.to(tl.int64) * s_lset
        tl.store(p_lse, (b_max + tl.log2(b_sum)) * 0.6931471805599453, mask=o_q < L)


def parts(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, L, 3, H, K) as three views (B, 1, L, H, K), which the parts of axis attention take."""
    q, k, v = qkv.unsqueeze(1).unbind(3)
    return q, k, v


def register_limit(q: Tensor) -> dict[str, int]:
    """Limit on registers a thread: in fp32 with heads of 64 on sm_100 Triton 3.6 takes 64 by itself, and a stack."""
    narrow = q.element_size() == 4 and q.shape[-1] == 64 and tiles.gpu_of(q.device).major == 10
    return {"maxnreg": 128} if narrow else {}


def causal_attention_fwd(qkv: Tensor, prefix: int, need_lse: bool) -> tuple[Tensor, Tensor]:
    """(out (B, L, H*K), lse (B, L, H) fp32 or empty) of qkv (B, L, 3, H, K)."""
    q, k, v = parts(qkv)
    out = rows.empty(q.shape, qkv.dtype, qkv.device)
    lse = torch.empty(q.shape[:-1] if need_lse else (0,), dtype=torch.float32, device=qkv.device)
    if qkv.numel():
        job = problem(q, k, "space", None, v, out)
        c = config("causal_attention_fwd", q, job.T_q, job.T_k)
        s_lse = strides(lse.unsqueeze(-1), "space")[:3] if need_lse else (0, 0, 0)
        blocks = tiles.ceil_div(job.T_q, c.block_m)
        with rows.guard(qkv):
            causal_attention_fwd_kernel[(job.sequences * blocks,)](
                q, k, v, out, lse, *(s for x in (q, k, v, out) for s in strides(x, "space")), *s_lse, blocks,
                job.outer, job.T_q, prefix, q.shape[-1] ** -0.5, HAS_LSE=need_lse, **job.constants,
                BLOCK_M=c.block_m, BLOCK_N=c.block_n, STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
                **register_limit(q),
            )  # fmt: skip
    return rows.rounded(out, qkv.dtype).flatten(-2).squeeze(1), lse.squeeze(1) if need_lse else lse
