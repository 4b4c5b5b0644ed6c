"""Attention over long sequences on Triton, backward: dq by blocks of queries, then dk and dv by blocks of keys.

In fp32 the softmax is recomputed and delta is sum(p dp): the fp32 lse, whose rounding grows with the largest score, and
sum(dout out) alone would add as much error as everything else. In 16 bits neither matters, and both are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.attention_tiles import (
    Rope,
    by_heads,
    bytes_of,
    dot_heads,
    load_heads,
    moved,
    offset,
    place,
    problem,
    store_heads,
    store_sums,
    strides,
)
from latte_fast.kernels.flash_attention_fwd import config, scores
from latte_fast.kernels.rotate import rotate, rotated


@triton.jit
def finite(b_lse, HAS_MASK: tl.constexpr):
    """Converts lse to base 2; a query without a key gets +inf, which makes its probabilities zero."""
    b_lse = b_lse * 1.4426950408889634
    if HAS_MASK:
        b_lse = tl.where(b_lse < -1e29, float("inf"), b_lse)
    return b_lse


@triton.jit
def stat_offset(o_lse):
    """Offsets (T, 2), as many as a program has threads, so that Triton loads each value once, not in every thread."""
    return o_lse[:, None] * 2 + tl.arange(0, 2)[None, :]


@triton.jit(do_not_specialize=["blocks", "outer"])
def flash_attention_dq_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, mask_ptr, dq_ptr, stat_ptr, sum_ptr, dbias_ptr,
    s_doutb, s_douto, s_doutt, s_douth, s_qb, s_qo, s_qt, s_qh, s_kb, s_ko, s_kt, s_kh, s_vb, s_vo, s_vt, s_vh,
    s_outb, s_outo, s_outt, s_outh, s_dqb, s_dqo, s_dqt, s_dqh, s_lseb, s_lseo, s_lset, s_mask,
    blocks, outer, T_q, T_k, scale,
    H: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr,
    HAS_MASK: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, EXACT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Writes dq, and for the kernel of dk and dv each query's lse in base 2 and scale * delta, side by side, with
    delta = sum(dout out). EXACT writes the largest score for lse, delta = sum(p dp), and the softmax's sum apart.
    HAS_BIAS writes the sums of dq over the program's tokens to dbias (B * outer * blocks, 3, H, K)."""
    i_m, i_b, i_o, i_h = place(tl.program_id(0), blocks, outer, H)
    o_q = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_q = (o_q < T_q)[:, None]
    p_q = q_ptr + offset(i_b, i_o, i_h, o_q, s_qb, s_qo, s_qt, s_qh, ALIGN)
    p_dout = dout_ptr + offset(i_b, i_o, i_h, o_q, s_doutb, s_douto, s_doutt, s_douth, ALIGN)
    p_out = out_ptr + offset(i_b, i_o, i_h, o_q, s_outb, s_outo, s_outt, s_outh, ALIGN)
    b_q0, b_q1 = load_heads(p_q, m_q, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_M, K_MAIN)
    b_dout0, b_dout1 = load_heads(p_dout, m_q, K, K_MAIN, K_TAIL, UPCAST)
    o_lse = i_b * s_lseb + i_o * s_lseo + i_h + o_q.to(tl.int64) * s_lset
    p_k = k_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_kb, s_ko, s_kt, s_kh, ALIGN)
    p_v = v_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_vb, s_vo, s_vt, s_vh, ALIGN)
    if EXACT:
        b_lse = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
        b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
        b_delta = tl.zeros([BLOCK_M], dtype=tl.float32)
        for i_k in tl.range(0, T_k, BLOCK_N, num_stages=STAGES):
            o_k = i_k + tl.arange(0, BLOCK_N)
            m_k = (o_k < T_k)[:, None] if not EVEN else (o_k >= 0)[:, None]
            b_k0, b_k1 = load_heads(moved(p_k, i_k, s_kt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)
            b_v0, b_v1 = load_heads(moved(p_v, i_k, s_vt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)
            b_s = dot_heads(b_q0, b_q1, b_k0, b_k1, K_TAIL) * (scale * 1.4426950408889634)
            b_s = scores(b_s, mask_ptr + i_b * s_mask, o_k[None, :], T_k, EVEN, HAS_MASK)
            b_new = tl.maximum(b_lse, tl.max(b_s, 1))
            if HAS_MASK:
                b_new = tl.where(b_new == float("-inf"), -1e30, b_new)
            b_shrink = tl.exp2(b_lse - b_new)
            b_p = tl.exp2(b_s - b_new[:, None])
            b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
            b_delta = b_delta * b_shrink + tl.sum(b_p * dot_heads(b_dout0, b_dout1, b_v0, b_v1, K_TAIL), 1)
            b_lse = b_new
        if HAS_MASK:
            b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
        b_delta = b_delta / b_sum
        tl.store(sum_ptr + o_lse, b_sum, mask=o_q < T_q)
    else:
        b_out0, b_out1 = load_heads(p_out, m_q, K, K_MAIN, K_TAIL, UPCAST)
        b_delta = tl.sum(b_dout0.to(tl.float32) * b_out0.to(tl.float32), 1)
        if K_TAIL > 0:
            b_delta += tl.sum(b_dout1.to(tl.float32) * b_out1.to(tl.float32), 1)
        b_lse = finite(tl.load(lse_ptr + o_lse, mask=o_q < T_q, other=0.0), HAS_MASK)
        b_sum = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
    b_delta *= scale
    tl.store(stat_ptr + stat_offset(o_lse), tl.join(b_lse, b_delta), mask=m_q)
    b_dq0 = tl.zeros([BLOCK_M, K_MAIN], dtype=tl.float32)
    b_dq1 = tl.zeros([BLOCK_M, K_TAIL if K_TAIL > 0 else K_MAIN], dtype=tl.float32)
    for i_k in tl.range(0, T_k, BLOCK_N, num_stages=STAGES):
        o_k = i_k + tl.arange(0, BLOCK_N)
        m_k = (o_k < T_k)[:, None] if not EVEN else (o_k >= 0)[:, None]
        b_k0, b_k1 = load_heads(moved(p_k, i_k, s_kt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_N, K_MAIN)
        b_v0, b_v1 = load_heads(moved(p_v, i_k, s_vt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)
        b_s = dot_heads(b_q0, b_q1, b_k0, b_k1, K_TAIL) * (scale * 1.4426950408889634)
        b_s = scores(b_s, mask_ptr + i_b * s_mask, o_k[None, :], T_k, EVEN, HAS_MASK)
        b_p = tl.exp2(b_s - b_lse[:, None])
        if EXACT:
            b_p = b_p / b_sum[:, None]
        b_dp = dot_heads(b_dout0, b_dout1, b_v0, b_v1, K_TAIL)
        b_ds = (b_p * (b_dp * scale - b_delta[:, None])).to(b_k0.dtype)
        b_dq0 = tl.dot(b_ds, b_k0, b_dq0, input_precision="ieee")
        if K_TAIL > 0:
            b_dq1 = tl.dot(b_ds, b_k1, b_dq1, input_precision="ieee")
    p_dq = dq_ptr + offset(i_b, i_o, i_h, o_q, s_dqb, s_dqo, s_dqt, s_dqh, ALIGN)
    store_heads(p_dq, b_dq0, b_dq1, m_q, K, K_MAIN, K_TAIL)
    if HAS_BIAS:
        p_dbias = dbias_ptr + (((i_b * outer + i_o) * blocks + i_m) * 3 * H + i_h) * K
        store_sums(p_dbias, i_h >= 0, b_dq0, b_dq1, m_q, K, K_MAIN, K_TAIL)


@triton.jit(do_not_specialize=["blocks", "outer"])
def flash_attention_dkdv_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, stat_ptr, sum_ptr, mask_ptr, dk_ptr, dv_ptr, dbias_ptr,
    s_doutb, s_douto, s_doutt, s_douth, s_qb, s_qo, s_qt, s_qh, s_kb, s_ko, s_kt, s_kh, s_vb, s_vo, s_vt, s_vh,
    s_dkb, s_dko, s_dkt, s_dkh, s_dvb, s_dvo, s_dvt, s_dvh, s_lseb, s_lseo, s_lset, s_mask,
    blocks, outer, T_q, T_k, scale,
    H: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr,
    HAS_MASK: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, EXACT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv; scores are (keys, queries) here, so that no tile is transposed between its two dots.
    HAS_BIAS writes their sums over the program's tokens to dbias (B * outer * blocks, 3, H, K)."""
    i_m, i_b, i_o, i_h = place(tl.program_id(0), blocks, outer, H)
    o_k = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_k = (o_k < T_k)[:, None]
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
    for i_q in tl.range(0, T_q, BLOCK_N, num_stages=STAGES):
        o_q = i_q + tl.arange(0, BLOCK_N)
        m_q = (o_q < T_q)[:, None] if not EVEN else (o_q >= 0)[:, None]
        b_q0, b_q1 = load_heads(moved(p_q, i_q, s_qt, ALIGN), m_q, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_N, K_MAIN)
        b_dout0, b_dout1 = load_heads(moved(p_dout, i_q, s_doutt, ALIGN), m_q, K, K_MAIN, K_TAIL, UPCAST)
        o_lse = i_b * s_lseb + i_o * s_lseo + i_h + o_q.to(tl.int64) * s_lset
        b_lse, b_delta = tl.split(tl.load(stat_ptr + stat_offset(o_lse), mask=m_q, other=0.0))
        b_st = dot_heads(b_k0, b_k1, b_q0, b_q1, K_TAIL) * (scale * 1.4426950408889634)
        # applies the key mask alone: keys past the end are not stored, and queries past the end have dout = 0
        b_st = scores(b_st, mask_ptr + i_b * s_mask, o_k[:, None], T_k, True, HAS_MASK)
        b_pt = tl.exp2(b_st - b_lse[None, :])
        if EXACT:
            b_pt = b_pt / tl.load(sum_ptr + o_lse, mask=o_q < T_q, other=1.0)[None, :]
        b_dpt = dot_heads(b_v0, b_v1, b_dout0, b_dout1, K_TAIL)
        b_dst = (b_pt * (b_dpt * scale - b_delta[None, :])).to(b_q0.dtype)
        b_pt = b_pt.to(b_q0.dtype)
        b_dv0 = tl.dot(b_pt, b_dout0, b_dv0, input_precision="ieee")
        b_dk0 = tl.dot(b_dst, b_q0, b_dk0, input_precision="ieee")
        if K_TAIL > 0:
            b_dv1 = tl.dot(b_pt, b_dout1, b_dv1, input_precision="ieee")
            b_dk1 = tl.dot(b_dst, b_q1, b_dk1, input_precision="ieee")
    p_dk = dk_ptr + offset(i_b, i_o, i_h, o_k, s_dkb, s_dko, s_dkt, s_dkh, ALIGN)
    p_dv = dv_ptr + offset(i_b, i_o, i_h, o_k, s_dvb, s_dvo, s_dvt, s_dvh, ALIGN)
    store_heads(p_dk, b_dk0, b_dk1, m_k, K, K_MAIN, K_TAIL)
    store_heads(p_dv, b_dv0, b_dv1, m_k, K, K_MAIN, K_TAIL)
    if HAS_BIAS:
        p_dbias = dbias_ptr + (((i_b * outer + i_o) * blocks + i_m) * 3 * H + i_h) * K
        store_sums(p_dbias + H * K, i_h >= 0, b_dk0, b_dk1, m_k, K, K_MAIN, K_TAIL)
        store_sums(p_dbias + 2 * H * K, i_h >= 0, b_dv0, b_dv1, m_k, K, K_MAIN, K_TAIL)


def flash_attention_bwd(
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
    """Writes dq, dk, dv, and where it is given, which takes a call without rope, dbias (3*H*K), their sums."""
    dout, out = by_heads(dout, q), by_heads(out, q)
    q, k = rotated(q, axis, rope), rotated(k, axis, rope)
    job = problem(q, k, axis, key_mask, v, dout, out, dq, dk, dv)
    mask, s_mask = bytes_of(key_mask, q)
    exact = q.dtype == torch.float32
    stat = torch.empty(*lse.shape, 2, dtype=lse.dtype, device=lse.device)
    sums = torch.empty_like(lse) if exact else stat
    s_lse = strides(lse.unsqueeze(-1), axis)[:3]
    s = {name: strides(x, axis) for name, x in zip("oqkvODKV", (dout, q, k, v, out, dq, dk, dv), strict=True)}
    c = config("flash_attention_dq", q, job.T_q, job.T_k)
    c_keys = config("flash_attention_dkdv", q, job.T_k, job.T_q)
    blocks, blocks_keys = tiles.ceil_div(job.T_q, c.block_m), tiles.ceil_div(job.T_k, c_keys.block_m)
    heads = q.shape[-2:].numel()
    frames = job.sequences // q.shape[-2]
    most = frames * max(blocks, blocks_keys)
    partials = q if dbias is None else torch.empty((most, 3, heads), dtype=torch.float32, device=q.device)
    with rows.guard(q):
        flash_attention_dq_kernel[(job.sequences * blocks,)](
            dout, q, k, v, out, lse, mask, dq, stat, sums, partials, *s["o"], *s["q"], *s["k"], *s["v"], *s["O"],
            *s["D"], *s_lse, s_mask, blocks, job.outer, job.T_q, job.T_k, scale, EXACT=exact,
            HAS_BIAS=dbias is not None, EVEN=job.T_k % c.block_n == 0, **job.constants, BLOCK_M=c.block_m,
            BLOCK_N=c.block_n, STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
        )  # fmt: skip
        flash_attention_dkdv_kernel[(job.sequences * blocks_keys,)](
            dout, q, k, v, stat, sums, mask, dk, dv, partials, *s["o"], *s["q"], *s["k"], *s["v"], *s["K"], *s["V"],
            *s_lse, s_mask, blocks_keys, job.outer, job.T_q, job.T_k, scale, EXACT=exact,
            HAS_BIAS=dbias is not None, EVEN=job.T_q % c_keys.block_n == 0, **job.constants, BLOCK_M=c_keys.block_m,
            BLOCK_N=c_keys.block_n, STAGES=c_keys.stages, num_warps=c_keys.warps, enable_fp_fusion=True,
        )  # fmt: skip
    if dbias is not None:
        rows.sum_rows(partials, frames * blocks, frames * blocks_keys, dbias)
    if rope is not None:
        rotate(dq, axis, rope, -1, dq)
        rotate(dk, axis, rope, -1, dk)
