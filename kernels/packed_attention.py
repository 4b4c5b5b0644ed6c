"""Attention over short sequences, several a program: each is one tile, and its scores stay in registers.

Sixteen frames are one MMA tile, so bandwidth is the limit: neighbouring programs read neighbouring heads of the same
tokens, and the backward recomputes the scores and reads neither the output nor the forward's sums.
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
    problem,
    rotate_heads,
    store_heads,
    store_sums,
    strides,
    transposed,
)

LONGEST = 32


@triton.jit
def sequence_offset(i_b, i_o, i_h, s_b, s_o, s_h, ALIGN: tl.constexpr):
    """(P, 1, 1) offsets of sequences."""
    return tl.multiple_of(i_b * s_b + i_o * s_o + i_h * s_h, [ALIGN])[:, None, None]


@triton.jit
def token_offset(o_t, s_t, ALIGN: tl.constexpr):
    """(1, T, 1) offsets of tokens."""
    return tl.multiple_of(o_t.to(tl.int64) * s_t, [ALIGN])[None, :, None]


@triton.jit
def masked_scores(
    b_s, mask_ptr, s_mask, i_b, o_k, m_s, T_K: tl.constexpr, BLOCK_K: tl.constexpr, HAS_MASK: tl.constexpr
):
    """Scores with -inf at keys that are masked or past the end."""
    if T_K < BLOCK_K:
        b_s = tl.where((o_k < T_K)[None, None, :], b_s, float("-inf"))
    if HAS_MASK:
        m_k = m_s[:, None] & (o_k < T_K)[None, :]
        b_mask = tl.load(mask_ptr + i_b[:, None] * s_mask + o_k[None, :], mask=m_k, other=0)
        b_s = tl.where((b_mask != 0)[:, None, :], b_s, float("-inf"))
    return b_s


@triton.jit
def exponentials(b_s, HAS_MASK: tl.constexpr):
    """(2^(s - max), max, sum) over keys; a row without a key gets zeros and the sum 1, which is safe to divide by."""
    b_max = tl.max(b_s, 2)
    if HAS_MASK:
        b_max = tl.where(b_max == float("-inf"), 0.0, b_max)
    b_p = tl.exp2(b_s - b_max[:, :, None])
    b_sum = tl.sum(b_p, 2)
    if HAS_MASK:
        b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    return b_p, b_max, b_sum


@triton.jit(do_not_specialize=["outer", "sequences"])
def packed_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, mask_ptr, out_ptr, lse_ptr,
    s_qb, s_qo, s_qt, s_qh, s_kb, s_ko, s_kt, s_kh, s_vb, s_vo, s_vt, s_vh, s_outb, s_outo, s_outt, s_outh,
    s_lseb, s_lseo, s_lset, s_mask, outer, sequences, scale,
    T_Q: tl.constexpr, T_K: tl.constexpr, H: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr,
    K_TAIL: tl.constexpr, HAS_ROPE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_LSE: tl.constexpr,
    ALIGN: tl.constexpr, UPCAST: tl.constexpr, PACK: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    i_s = tl.program_id(0).to(tl.int64) * PACK + tl.arange(0, PACK)
    m_s = i_s < sequences
    i_h, i_bo = i_s % H, i_s // H
    i_b, i_o = i_bo // outer, i_bo % outer
    o_q, o_k = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K)
    m_q = m_s[:, None, None] & (o_q < T_Q)[None, :, None]
    m_k = m_s[:, None, None] & (o_k < T_K)[None, :, None]
    p_q = q_ptr + sequence_offset(i_b, i_o, i_h, s_qb, s_qo, s_qh, ALIGN) + token_offset(o_q, s_qt, ALIGN)
    p_k = k_ptr + sequence_offset(i_b, i_o, i_h, s_kb, s_ko, s_kh, ALIGN) + token_offset(o_k, s_kt, ALIGN)
    p_v = v_ptr + sequence_offset(i_b, i_o, i_h, s_vb, s_vo, s_vh, ALIGN) + token_offset(o_k, s_vt, ALIGN)
    b_q0, b_q1 = load_heads(p_q, m_q, K, K_MAIN, K_TAIL, UPCAST)  # (P, BLOCK_Q, K_MAIN)
    b_k0, b_k1 = load_heads(p_k, m_k, K, K_MAIN, K_TAIL, UPCAST)
    b_v0, b_v1 = load_heads(p_v, m_k, K, K_MAIN, K_TAIL, UPCAST)
    if HAS_ROPE:
        b_q0, b_q1 = rotate_heads(b_q0, b_q1, cos_ptr, sin_ptr, o_q[:, None], T_Q, 1, K, K_MAIN, K_TAIL)
        b_k0, b_k1 = rotate_heads(b_k0, b_k1, cos_ptr, sin_ptr, o_k[:, None], T_K, 1, K, K_MAIN, K_TAIL)
    b_s = dot_heads(b_q0, b_q1, b_k0, b_k1, K_TAIL) * (scale * 1.4426950408889634)
    b_s = masked_scores(b_s, mask_ptr, s_mask, i_b, o_k, m_s, T_K, BLOCK_K, HAS_MASK)
    b_p, b_max, b_sum = exponentials(b_s, HAS_MASK)
    b_p16 = b_p.to(b_v0.dtype)
    b_out0 = tl.dot(b_p16, b_v0, input_precision="ieee") / b_sum[:, :, None]
    b_out1 = b_out0
    if K_TAIL > 0:
        b_out1 = tl.dot(b_p16, b_v1, input_precision="ieee") / b_sum[:, :, None]
    p_out = out_ptr + sequence_offset(i_b, i_o, i_h, s_outb, s_outo, s_outh, ALIGN) + token_offset(o_q, s_outt, ALIGN)
    store_heads(p_out, b_out0, b_out1, m_q, K, K_MAIN, K_TAIL)
    if HAS_LSE:
        p_lse = lse_ptr + (i_b * s_lseb + i_o * s_lseo + i_h)[:, None] + (o_q * s_lset)[None, :]
        b_lse = (b_max + tl.log2(b_sum)) * 0.6931471805599453
        tl.store(p_lse, b_lse, mask=m_s[:, None] & (o_q < T_Q)[None, :])


@triton.jit(do_not_specialize=["outer", "sequences"])
def packed_attention_bwd_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, mask_ptr, dq_ptr, dk_ptr, dv_ptr, sum_ptr,
    s_doutb, s_douto, s_doutt, s_douth, s_qb, s_qo, s_qt, s_qh, s_kb, s_ko, s_kt, s_kh, s_vb, s_vo, s_vt, s_vh,
    s_dqb, s_dqo, s_dqt, s_dqh, s_dkb, s_dko, s_dkt, s_dkh, s_dvb, s_dvo, s_dvt, s_dvh, s_mask, outer, sequences,
    scale,
    T_Q: tl.constexpr, T_K: tl.constexpr, H: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr,
    K_TAIL: tl.constexpr, HAS_ROPE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SUM: tl.constexpr,
    ALIGN: tl.constexpr, UPCAST: tl.constexpr, PACK: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Writes dq, dk, dv, and to sum (B * outer, 3, H, K) the sums of each over its sequence, where HAS_SUM."""
    i_s = tl.program_id(0).to(tl.int64) * PACK + tl.arange(0, PACK)
    m_s = i_s < sequences
    i_h, i_bo = i_s % H, i_s // H
    i_b, i_o = i_bo // outer, i_bo % outer
    o_q, o_k = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K)
    m_q = m_s[:, None, None] & (o_q < T_Q)[None, :, None]
    m_k = m_s[:, None, None] & (o_k < T_K)[None, :, None]
    p_q = q_ptr + sequence_offset(i_b, i_o, i_h, s_qb, s_qo, s_qh, ALIGN) + token_offset(o_q, s_qt, ALIGN)
    p_k = k_ptr + sequence_offset(i_b, i_o, i_h, s_kb, s_ko, s_kh, ALIGN) + token_offset(o_k, s_kt, ALIGN)
    p_v = v_ptr + sequence_offset(i_b, i_o, i_h, s_vb, s_vo, s_vh, ALIGN) + token_offset(o_k, s_vt, ALIGN)
    p_dout = dout_ptr + sequence_offset(i_b, i_o, i_h, s_doutb, s_douto, s_douth, ALIGN)
    b_q0, b_q1 = load_heads(p_q, m_q, K, K_MAIN, K_TAIL, UPCAST)
    b_k0, b_k1 = load_heads(p_k, m_k, K, K_MAIN, K_TAIL, UPCAST)
    b_v0, b_v1 = load_heads(p_v, m_k, K, K_MAIN, K_TAIL, UPCAST)
    b_dout0, b_dout1 = load_heads(p_dout + token_offset(o_q, s_doutt, ALIGN), m_q, K, K_MAIN, K_TAIL, UPCAST)
    if HAS_ROPE:
        b_q0, b_q1 = rotate_heads(b_q0, b_q1, cos_ptr, sin_ptr, o_q[:, None], T_Q, 1, K, K_MAIN, K_TAIL)
        b_k0, b_k1 = rotate_heads(b_k0, b_k1, cos_ptr, sin_ptr, o_k[:, None], T_K, 1, K, K_MAIN, K_TAIL)
    b_s = dot_heads(b_q0, b_q1, b_k0, b_k1, K_TAIL) * (scale * 1.4426950408889634)
    b_s = masked_scores(b_s, mask_ptr, s_mask, i_b, o_k, m_s, T_K, BLOCK_K, HAS_MASK)
    b_p, _, b_sum = exponentials(b_s, HAS_MASK)
    b_p = b_p / b_sum[:, :, None]
    b_dp = dot_heads(b_dout0, b_dout1, b_v0, b_v1, K_TAIL)
    # the tile holds whole rows, so delta is sum(p dp) and not sum(dout out): the output is not read
    b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, 2)[:, :, None]) * scale
    b_p, b_ds = b_p.to(b_q0.dtype), b_ds.to(b_q0.dtype)
    b_pt, b_dst = transposed(b_p), transposed(b_ds)
    b_dq0 = tl.dot(b_ds, b_k0, input_precision="ieee")
    b_dk0 = tl.dot(b_dst, b_q0, input_precision="ieee")
    b_dv0 = tl.dot(b_pt, b_dout0, input_precision="ieee")
    b_dq1, b_dk1, b_dv1 = b_dq0, b_dk0, b_dv0
    if K_TAIL > 0:
        b_dq1 = tl.dot(b_ds, b_k1, input_precision="ieee")
        b_dk1 = tl.dot(b_dst, b_q1, input_precision="ieee")
        b_dv1 = tl.dot(b_pt, b_dout1, input_precision="ieee")
    if HAS_ROPE:
        b_dq0, b_dq1 = rotate_heads(b_dq0, b_dq1, cos_ptr, sin_ptr, o_q[:, None], T_Q, -1, K, K_MAIN, K_TAIL)
        b_dk0, b_dk1 = rotate_heads(b_dk0, b_dk1, cos_ptr, sin_ptr, o_k[:, None], T_K, -1, K, K_MAIN, K_TAIL)
    p_dq = dq_ptr + sequence_offset(i_b, i_o, i_h, s_dqb, s_dqo, s_dqh, ALIGN) + token_offset(o_q, s_dqt, ALIGN)
    p_dk = dk_ptr + sequence_offset(i_b, i_o, i_h, s_dkb, s_dko, s_dkh, ALIGN) + token_offset(o_k, s_dkt, ALIGN)
    p_dv = dv_ptr + sequence_offset(i_b, i_o, i_h, s_dvb, s_dvo, s_dvh, ALIGN) + token_offset(o_k, s_dvt, ALIGN)
    store_heads(p_dq, b_dq0, b_dq1, m_q, K, K_MAIN, K_TAIL)
    store_heads(p_dk, b_dk0, b_dk1, m_k, K, K_MAIN, K_TAIL)
    store_heads(p_dv, b_dv0, b_dv1, m_k, K, K_MAIN, K_TAIL)
    if HAS_SUM:
        p_sum = sum_ptr + ((i_bo * 3 * H + i_h) * K)[:, None]
        store_sums(p_sum, m_s[:, None], b_dq0, b_dq1, m_q, K, K_MAIN, K_TAIL)
        store_sums(p_sum + H * K, m_s[:, None], b_dk0, b_dk1, m_k, K, K_MAIN, K_TAIL)
        store_sums(p_sum + 2 * H * K, m_s[:, None], b_dv0, b_dv1, m_k, K, K_MAIN, K_TAIL)


def blocks(T_q: int, T_k: int) -> dict[str, int]:
    return {"BLOCK_Q": max(16, tiles.power_of_2(T_q)), "BLOCK_K": max(16, tiles.power_of_2(T_k))}


def config(kernel: str, q: Tensor, T_q: int, T_k: int) -> tiles.PackedConfig:
    """One warp for each sequence of 16, two where its values are fp32, four for a sequence of 32."""
    longest = max(16, tiles.power_of_2(max(T_q, T_k)))
    default = tiles.PackedConfig(pack=1 if longest > 16 else 2 if q.dtype == torch.float32 else 4, warps=4)
    return tiles.choose(kernel, f"T{longest}-K{q.shape[-1]}-{rows.NAMES[q.dtype]}", default, q.device)


def packed_attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    rope: Rope | None,
    scale: float,
    key_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Writes out (B, F, N, H, K) and, where it is not empty, lse (B, F, N, H)."""
    job = problem(q, k, axis, key_mask, v, out)
    c = config("packed_attention_fwd", q, job.T_q, job.T_k)
    mask, s_mask = bytes_of(key_mask, q)
    cos, sin = (q, q) if rope is None else (t.contiguous() for t in rope)
    s_lse = strides(lse.unsqueeze(-1), axis)[:3] if lse.numel() else (0, 0, 0)
    with rows.guard(q):
        packed_attention_fwd_kernel[(tiles.ceil_div(job.sequences, c.pack),)](
            q, k, v, cos, sin, mask, out, lse, *strides(q, axis), *strides(k, axis), *strides(v, axis),
            *strides(out, axis), *s_lse, s_mask, job.outer, job.sequences, scale,
            T_Q=job.T_q, T_K=job.T_k, HAS_LSE=lse.numel() > 0, HAS_ROPE=rope is not None, **job.constants, PACK=c.pack,
            **blocks(job.T_q, job.T_k), num_warps=c.warps, enable_fp_fusion=True,
        )  # fmt: skip


def packed_attention_bwd(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    rope: Rope | None,
    scale: float,
    key_mask: Tensor | None,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias: Tensor | None = None,
) -> None:
    """Writes dq, dk, dv, and where it is given dbias (3*H*K), their sums over all tokens."""
    dout = by_heads(dout, q)
    job = problem(q, k, axis, key_mask, v, dout, dq, dk, dv)
    c = config("packed_attention_bwd", q, job.T_q, job.T_k)
    mask, s_mask = bytes_of(key_mask, q)
    cos, sin = (q, q) if rope is None else (t.contiguous() for t in rope)
    s = [s for x in (dout, q, k, v, dq, dk, dv) for s in strides(x, axis)]
    heads = q.shape[-2:].numel()
    count = job.sequences // q.shape[-2]
    sums = q if dbias is None else torch.empty((count, 3, heads), dtype=torch.float32, device=q.device)
    with rows.guard(q):
        packed_attention_bwd_kernel[(tiles.ceil_div(job.sequences, c.pack),)](
            dout, q, k, v, cos, sin, mask, dq, dk, dv, sums, *s, s_mask, job.outer, job.sequences, scale,
            T_Q=job.T_q, T_K=job.T_k, HAS_ROPE=rope is not None, HAS_SUM=dbias is not None,
            **job.constants, PACK=c.pack, **blocks(job.T_q, job.T_k), num_warps=c.warps, enable_fp_fusion=True,
        )  # fmt: skip
    if dbias is not None:
        rows.sum_rows(sums, count, count, dbias)
