"""causal_attention on Triton, backward: dq by blocks of queries, then dk and dv by blocks of keys.

In fp32 the softmax is recomputed and delta is sum(p dp), for which see flash_attention_bwd.
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
from latte_fast.kernels.causal_attention_fwd import ends, parts, seen
from latte_fast.kernels.flash_attention_bwd import stat_offset
from latte_fast.kernels.flash_attention_fwd import config


@triton.jit(do_not_specialize=["blocks", "outer", "prefix"])
def causal_attention_dq_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, dq_ptr, stat_ptr, sum_ptr,
    s_doutb, s_douto, s_doutt, s_douth, s_qb, s_qo, s_qt, s_qh, s_kb, s_ko, s_kt, s_kh, s_vb, s_vo, s_vt, s_vh,
    s_outb, s_outo, s_outt, s_outh, s_dqb, s_dqo, s_dqt, s_dqh, s_lseb, s_lseo, s_lset, blocks, outer, L, prefix, scale,
    H: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr, HAS_MASK: tl.constexpr,
    ALIGN: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Writes dq, and each query's lse to the base 2 and scale * delta; EXACT as in flash_attention_dq_kernel."""
    i_m, i_b, i_o, i_h = place(tl.program_id(0), blocks, outer, H)
    i_m = blocks - 1 - i_m
    o_q = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_q = (o_q < L)[:, None]
    p_q = q_ptr + offset(i_b, i_o, i_h, o_q, s_qb, s_qo, s_qt, s_qh, ALIGN)
    p_dout = dout_ptr + offset(i_b, i_o, i_h, o_q, s_doutb, s_douto, s_doutt, s_douth, ALIGN)
    b_q0, b_q1 = load_heads(p_q, m_q, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_M, K_MAIN)
    b_dout0, b_dout1 = load_heads(p_dout, m_q, K, K_MAIN, K_TAIL, UPCAST)
    o_lse = i_b * s_lseb + i_o * s_lseo + i_h + o_q.to(tl.int64) * s_lset
    p_k = k_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_kb, s_ko, s_kt, s_kh, ALIGN)
    p_v = v_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_vb, s_vo, s_vt, s_vh, ALIGN)
    whole, last = ends(i_m, L, prefix, BLOCK_M, BLOCK_N)
    if EXACT:
        b_lse = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
        b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
        b_delta = tl.zeros([BLOCK_M], dtype=tl.float32)
        for i_k in tl.range(0, last, BLOCK_N, num_stages=STAGES):
            o_k = i_k + tl.arange(0, BLOCK_N)
            m_k = (o_k < L)[:, None]
            b_k0, b_k1 = load_heads(moved(p_k, i_k, s_kt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)
            b_v0, b_v1 = load_heads(moved(p_v, i_k, s_vt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)
            b_s = dot_heads(b_q0, b_q1, b_k0, b_k1, K_TAIL) * (scale * 1.4426950408889634)
            b_s = seen(b_s, o_q[:, None], o_k[None, :], prefix)
            b_new = tl.maximum(b_lse, tl.max(b_s, 1))
            b_shrink = tl.exp2(b_lse - b_new)
            b_p = tl.exp2(b_s - b_new[:, None])
            b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
            b_delta = b_delta * b_shrink + tl.sum(b_p * dot_heads(b_dout0, b_dout1, b_v0, b_v1, K_TAIL), 1)
            b_lse = b_new
        b_delta = b_delta / b_sum
        tl.store(sum_ptr + o_lse, b_sum, mask=o_q < L)
    else:
        p_out = out_ptr + offset(i_b, i_o, i_h, o_q, s_outb, s_outo, s_outt, s_outh, ALIGN)
        b_out0, b_out1 = load_heads(p_out, m_q, K, K_MAIN, K_TAIL, UPCAST)
        b_delta = tl.sum(b_dout0.to(tl.float32) * b_out0.to(tl.float32), 1)
        if K_TAIL > 0:
            b_delta += tl.sum(b_dout1.to(tl.float32) * b_out1.to(tl.float32), 1)
        b_lse = tl.load(lse_ptr + o_lse, mask=o_q < L, other=0.0) * 1.4426950408889634
        b_sum = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
    b_delta *= scale
    tl.store(stat_ptr + stat_offset(o_lse), tl.join(b_lse, b_delta), mask=m_q)
    b_dq0 = tl.zeros([BLOCK_M, K_MAIN], dtype=tl.float32)
    b_dq1 = tl.zeros([BLOCK_M, K_TAIL if K_TAIL > 0 else K_MAIN], dtype=tl.float32)
    for i_k in tl.range(0, whole, BLOCK_N, num_stages=STAGES):
        b_dq0, b_dq1 = dq_block(
            b_q0, b_q1, b_dout0, b_dout1, p_k, p_v, i_k, o_q, b_lse, b_sum, b_delta, b_dq0, b_dq1, s_kt, s_vt, L,
            prefix, scale, K, K_MAIN, K_TAIL, ALIGN, UPCAST, BLOCK_N, EXACT, False,
        )  # fmt: skip
    for i_k in tl.range(whole, last, BLOCK_N, num_stages=1):
        b_dq0, b_dq1 = dq_block(
            b_q0, b_q1, b_dout0, b_dout1, p_k, p_v, i_k, o_q, b_lse, b_sum, b_delta, b_dq0, b_dq1, s_kt, s_vt, L,
            prefix, scale, K, K_MAIN, K_TAIL, ALIGN, UPCAST, BLOCK_N, EXACT, True,
        )  # fmt: skip
    p_dq = dq_ptr + offset(i_b, i_o, i_h, o_q, s_dqb, s_dqo, s_dqt, s_dqh, ALIGN)
    store_heads(p_dq, b_dq0, b_dq1, m_q, K, K_MAIN, K_TAIL)


@triton.jit
def dq_block(
    b_q0, b_q1, b_dout0, b_dout1, p_k, p_v, i_k, o_q, b_lse, b_sum, b_delta, b_dq0, b_dq1, s_kt, s_vt, L, prefix, scale,
    K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr, ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr, EXACT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """dq with a block of keys added."""
    o_k = i_k + tl.arange(0, BLOCK_N)
    m_k = (o_k < L)[:, None] if MASKED else (o_k >= 0)[:, None]
    b_k0, b_k1 = load_heads(moved(p_k, i_k, s_kt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_N, K_MAIN)
    b_v0, b_v1 = load_heads(moved(p_v, i_k, s_vt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)
    b_s = dot_heads(b_q0, b_q1, b_k0, b_k1, K_TAIL) * (scale * 1.4426950408889634)
    if MASKED:
        b_s = seen(b_s, o_q[:, None], o_k[None, :], prefix)
    b_p = tl.exp2(b_s - b_lse[:, None])
    if EXACT:
        b_p = b_p / b_sum[:, None]
    b_dp = dot_heads(b_dout0, b_dout1, b_v0, b_v1, K_TAIL)
    b_ds = (b_p * (b_dp * scale - b_delta[:, None])).to(b_k0.dtype)
    b_dq0 = tl.dot(b_ds, b_k0, b_dq0, input_precision="ieee")
    if K_TAIL > 0:
        b_dq1 = tl.dot(b_ds, b_k1, b_dq1, input_precision="ieee")
    return b_dq0, b_dq1


@triton.jit(do_not_specialize=["blocks", "outer", "prefix"])
def causal_attention_dkdv_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, stat_ptr, sum_ptr, dk_ptr, dv_ptr,
    s_doutb, s_douto, s_doutt, s_douth, s_qb, s_qo, s_qt, s_qh, s_kb, s_ko, s_kt, s_kh, s_vb, s_vo, s_vt, s_vh,
    s_dkb, s_dko, s_dkt, s_dkh, s_dvb, s_dvo, s_dvt, s_dvh, s_lseb, s_lseo, s_lset, blocks, outer, L, prefix, scale,
    H: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr, HAS_MASK: tl.constexpr,
    ALIGN: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv; scores are (keys, queries), masked up to the block's last key, and not beyond."""
    i_m, i_b, i_o, i_h = place(tl.program_id(0), blocks, outer, H)
    o_k = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_k = (o_k < L)[:, None]
    p_k = k_ptr + offset(i_b, i_o, i_h, o_k, s_kb, s_ko, s_kt, s_kh, ALIGN)
    p_v = v_ptr + offset(i_b, i_o, i_h, o_k, s_vb, s_vo, s_vt, s_vh, ALIGN)
    b_k0, b_k1 = load_heads(p_k, m_k, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_M, K_MAIN)
    b_v0, b_v1 = load_heads(p_v, m_k, K, K_MAIN, K_TAIL, UPCAST)
    b_dk0 = tl.zeros([BLOCK_M, K_MAIN], dtype=tl.float32)
    b_dv0 = tl.zeros([BLOCK_M, K_MAIN], dtype=tl.float32)
    b_dk1 = tl.zeros([BLOCK_M, K_TAIL if K_TAIL > 0 else K_MAIN], dtype=tl.float32)
    b_dv1 = tl.zeros([BLOCK_M, K_TAIL if K_TAIL > 0 else K_MAIN], dtype=tl.float32)
    p_q = q_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_qb, s_qo, s_qt, s_qh, ALIGN)
    p_dout = dout_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_doutb, s_douto, s_doutt, s_douth, ALIGN)
    p_stat = i_b * s_lseb + i_o * s_lseo + i_h
    first = tl.where(i_m * BLOCK_M < prefix, 0, i_m * BLOCK_M // BLOCK_N * BLOCK_N)
    masked = tl.cdiv((i_m + 1) * BLOCK_M, BLOCK_N) * BLOCK_N
    for i_q in tl.range(first, tl.minimum(masked, L), BLOCK_N, num_stages=1):
        b_dk0, b_dk1, b_dv0, b_dv1 = dkdv_block(
            b_k0, b_k1, b_v0, b_v1, p_q, p_dout, stat_ptr, sum_ptr, p_stat, i_q, o_k, b_dk0, b_dk1, b_dv0, b_dv1,
            s_qt, s_doutt, s_lset, L, prefix, scale, K, K_MAIN, K_TAIL, ALIGN, UPCAST, BLOCK_N, EXACT, True,
        )  # fmt: skip
    for i_q in tl.range(masked, L, BLOCK_N, num_stages=STAGES):
        b_dk0, b_dk1, b_dv0, b_dv1 = dkdv_block(
            b_k0, b_k1, b_v0, b_v1, p_q, p_dout, stat_ptr, sum_ptr, p_stat, i_q, o_k, b_dk0, b_dk1, b_dv0, b_dv1,
            s_qt, s_doutt, s_lset, L, prefix, scale, K, K_MAIN, K_TAIL, ALIGN, UPCAST, BLOCK_N, EXACT, False,
        )  # fmt: skip
    p_dk = dk_ptr + offset(i_b, i_o, i_h, o_k, s_dkb, s_dko, s_dkt, s_dkh, ALIGN)
    p_dv = dv_ptr + offset(i_b, i_o, i_h, o_k, s_dvb, s_dvo, s_dvt, s_dvh, ALIGN)
    store_heads(p_dk, b_dk0, b_dk1, m_k, K, K_MAIN, K_TAIL)
    store_heads(p_dv, b_dv0, b_dv1, m_k, K, K_MAIN, K_TAIL)


@triton.jit
def dkdv_block(
    b_k0, b_k1, b_v0, b_v1, p_q, p_dout, stat_ptr, sum_ptr, p_stat, i_q, o_k, b_dk0, b_dk1, b_dv0, b_dv1,
    s_qt, s_doutt, s_lset, L, prefix, scale,
    K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr, ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr, EXACT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """dk and dv with a block of queries added; queries past the end have dout = 0."""
    o_q = i_q + tl.arange(0, BLOCK_N)
    m_q = (o_q < L)[:, None]
    b_q0, b_q1 = load_heads(moved(p_q, i_q, s_qt, ALIGN), m_q, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_N, K_MAIN)
    b_dout0, b_dout1 = load_heads(moved(p_dout, i_q, s_doutt, ALIGN), m_q, K, K_MAIN, K_TAIL, UPCAST)
    o_lse = p_stat + o_q.to(tl.int64) * s_lset
    b_lse, b_delta = tl.split(tl.load(stat_ptr + stat_offset(o_lse), mask=m_q, other=0.0))
    b_st = dot_heads(b_k0, b_k1, b_q0, b_q1, K_TAIL) * (scale * 1.4426950408889634)
    if MASKED:
        b_st = seen(b_st, o_q[None, :], o_k[:, None], prefix)
    b_pt = tl.exp2(b_st - b_lse[None, :])
    if EXACT:
        b_pt = b_pt / tl.load(sum_ptr + o_lse, mask=o_q < L, other=1.0)[None, :]
    b_dpt = dot_heads(b_v0, b_v1, b_dout0, b_dout1, K_TAIL)
    b_dst = (b_pt * (b_dpt * scale - b_delta[None, :])).to(b_q0.dtype)
    b_pt = b_pt.to(b_q0.dtype)
    b_dv0 = tl.dot(b_pt, b_dout0, b_dv0, input_precision="ieee")
    b_dk0 = tl.dot(b_dst, b_q0, b_dk0, input_precision="ieee")
    if K_TAIL > 0:
        b_dv1 = tl.dot(b_pt, b_dout1, b_dv1, input_precision="ieee")
        b_dk1 = tl.dot(b_dst, b_q1, b_dk1, input_precision="ieee")
    return b_dk0, b_dk1, b_dv0, b_dv1


def causal_attention_bwd(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, prefix: int) -> Tensor:
    """dqkv of dout and out (B, L, H*K), qkv (B, L, 3, H, K) and lse (B, L, H)."""
    dqkv = rows.empty(qkv.shape, qkv.dtype, qkv.device)
    if qkv.numel() == 0:
        return rows.rounded(dqkv, qkv.dtype)
    (q, k, v), (dq, dk, dv) = parts(qkv), parts(dqkv)
    dout, out, lse = (x.unsqueeze(1) for x in (dout, out, lse))
    dout, out = (x.unflatten(-1, q.shape[-2:]) for x in (dout, out))
    job = problem(q, k, "space", None, v, dout, out, dq, dk, dv)
    exact = qkv.dtype == torch.float32
    stat = torch.empty(*lse.shape, 2, dtype=lse.dtype, device=lse.device)
    sums = torch.empty_like(lse) if exact else stat
    s_lse = strides(lse.unsqueeze(-1), "space")[:3]
    s = {name: strides(x, "space") for name, x in zip("oqkvODKV", (dout, q, k, v, out, dq, dk, dv), strict=True)}
    scale = q.shape[-1] ** -0.5
    c = config("causal_attention_dq", q, job.T_q, job.T_k)
    blocks = tiles.ceil_div(job.T_q, c.block_m)
    with rows.guard(qkv):
        causal_attention_dq_kernel[(job.sequences * blocks,)](
            dout, q, k, v, out, lse, dq, stat, sums, *s["o"], *s["q"], *s["k"], *s["v"], *s["O"], *s["D"], *s_lse,
            blocks, job.outer, job.T_q, prefix, scale, EXACT=exact, **job.constants, BLOCK_M=c.block_m,
            BLOCK_N=c.block_n, STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
        )  # fmt: skip
        c = config("causal_attention_dkdv", q, job.T_k, job.T_q)
        blocks = tiles.ceil_div(job.T_k, c.block_m)
        causal_attention_dkdv_kernel[(job.sequences * blocks,)](
            dout, q, k, v, stat, sums, dk, dv, *s["o"], *s["q"], *s["k"], *s["v"], *s["K"], *s["V"], *s_lse,
            blocks, job.outer, job.T_q, prefix, scale, EXACT=exact, **job.constants, BLOCK_M=c.block_m,
            BLOCK_N=c.block_n, STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
        )  # fmt: skip
    return rows.rounded(dqkv, qkv.dtype)
