"""Attention over long sequences on Triton, forward: a block of queries, an online softmax over blocks of keys."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.attention_tiles import (
    Rope,
    bytes_of,
    dot_heads,
    load_heads,
    moved,
    offset,
    place,
    problem,
    store_heads,
    strides,
)
from latte_fast.kernels.rotate import rotated


@triton.jit
def scores(b_s, mask_ptr, o_k, T_k, EVEN: tl.constexpr, HAS_MASK: tl.constexpr):
    """Scores with -inf at those of the keys o_k, broadcast against b_s, that are masked or past the end."""
    if not EVEN:
        b_s = tl.where(o_k < T_k, b_s, float("-inf"))
    if HAS_MASK:
        b_s = tl.where(tl.load(mask_ptr + o_k, mask=o_k < T_k, other=0) != 0, b_s, float("-inf"))
    return b_s


@triton.jit(do_not_specialize=["blocks", "outer"])
def flash_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, out_ptr, lse_ptr,
    s_qb, s_qo, s_qt, s_qh, s_kb, s_ko, s_kt, s_kh, s_vb, s_vo, s_vt, s_vh, s_outb, s_outo, s_outt, s_outh,
    s_lseb, s_lseo, s_lset, s_mask, blocks, outer, T_q, T_k, scale,
    H: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_LSE: tl.constexpr, EVEN: tl.constexpr, ALIGN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    scale *= 1.4426950408889634
    i_m, i_b, i_o, i_h = place(tl.program_id(0), blocks, outer, H)
    o_q = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_q = (o_q < T_q)[:, None]
    p_q = q_ptr + offset(i_b, i_o, i_h, o_q, s_qb, s_qo, s_qt, s_qh, ALIGN)
    b_q0, b_q1 = load_heads(p_q, m_q, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_M, K_MAIN)
    b_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    b_out0 = tl.zeros([BLOCK_M, K_MAIN], dtype=tl.float32)
    b_out1 = tl.zeros([BLOCK_M, K_TAIL if K_TAIL > 0 else 16], dtype=tl.float32)
    p_k = k_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_kb, s_ko, s_kt, s_kh, ALIGN)
    p_v = v_ptr + offset(i_b, i_o, i_h, tl.arange(0, BLOCK_N), s_vb, s_vo, s_vt, s_vh, ALIGN)
    for i_k in tl.range(0, T_k, BLOCK_N, num_stages=STAGES):
        o_k = i_k + tl.arange(0, BLOCK_N)
        m_k = (o_k < T_k)[:, None] if not EVEN else (o_k >= 0)[:, None]
        b_k0, b_k1 = load_heads(moved(p_k, i_k, s_kt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)  # (BLOCK_N, K_MAIN)
        b_v0, b_v1 = load_heads(moved(p_v, i_k, s_vt, ALIGN), m_k, K, K_MAIN, K_TAIL, UPCAST)
        b_s = dot_heads(b_q0, b_q1, b_k0, b_k1, K_TAIL)
        b_s = scores(b_s, mask_ptr + i_b * s_mask, o_k[None, :], T_k, EVEN, HAS_MASK)
        # the largest score is found before scaling, so that one instruction scales a score and shifts it
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)
        if HAS_MASK:
            b_new = tl.where(b_new == float("-inf"), -1e30, b_new)
        b_shrink = tl.exp2(b_max - b_new)
        b_p = tl.exp2(b_s * scale - b_new[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_p = b_p.to(b_v0.dtype)
        b_out0 = tl.dot(b_p, b_v0, b_out0 * b_shrink[:, None], input_precision="ieee")
        if K_TAIL > 0:
            b_out1 = tl.dot(b_p, b_v1, b_out1 * b_shrink[:, None], input_precision="ieee")
        b_max = b_new
    if HAS_MASK:
        b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    p_out = out_ptr + offset(i_b, i_o, i_h, o_q, s_outb, s_outo, s_outt, s_outh, ALIGN)
    store_heads(p_out, b_out0 / b_sum[:, None], b_out1 / b_sum[:, None], m_q, K, K_MAIN, K_TAIL)
    if HAS_LSE:
        p_lse = lse_ptr + i_b * s_lseb + i_o * s_lseo + i_h + o_q.to(tl.int64) * s_lset
        tl.store(p_lse, (b_max + tl.log2(b_sum)) * 0.6931471805599453, mask=o_q < T_q)


def config(kernel: str, q: Tensor, T_own: int, T_other: int) -> tiles.FlashConfig:
    """Tile sizes, at most as long as the sequences; small in fp32, whose IEEE dots run without tensor cores."""
    forward = kernel.endswith("fwd")
    if q.dtype == torch.float32:
        default = tiles.FlashConfig(block_m=32, block_n=16 if forward and q.shape[-1] > 64 else 32, warps=8, stages=1)
    elif forward:
        default = tiles.FlashConfig(block_m=128, block_n=64, warps=8, stages=stages(q))
    else:
        # before sm_90 and on sm_120 accumulators and operands share registers, and at K = 72 a block of 64 is too much
        block_n = 64 if tiles.gpu_of(q.device).major in (9, 10, 11) else 32
        default = tiles.FlashConfig(block_m=64, block_n=block_n, warps=4, stages=stages(q))
    name = f"T{tiles.power_of_2(T_own)}-K{q.shape[-1]}-{rows.NAMES[q.dtype]}"
    c = tiles.choose(kernel, name, default, q.device)
    block_m, block_n = min(c.block_m, longest(T_own)), min(c.block_n, longest(T_other))
    same = (block_m, block_n) == (c.block_m, c.block_n)
    return c if same else tiles.replace(c, block_m=block_m, block_n=block_n)


def stages(q: Tensor) -> int:
    """Pipeline stages: enough that one tile is being copied while an iteration waits for its own.

    That takes three, as Triton requests a tile at the end of an iteration. On sm_100 it requests earlier where heads
    have two pieces, as 72 has, and two suffice; a third would leave room for only one program of dk and dv.
    """
    K = q.shape[-1]
    return 2 if K & (K - 1) and tiles.gpu_of(q.device).major in (10, 11) else 3


def register_limit(q: Tensor, c: tiles.FlashConfig, plain: bool) -> dict[str, int]:
    """Limit on registers a thread where ptxas by itself takes slightly too many, or too few and spills to the stack.

    16 bits, sm_90 to sm_110: 128 lets two programs of eight warps share a multiprocessor. Triton 3.7 gives heads of 72
    and 80 on sm_90 132 to 136 registers; limited to 128 nothing spills (3.6 to 3.8; two to four accesses by 3.9). It
    would spill with masked keys, at heads of 88 on sm_100, from 120 on, and with mma.sync (sm_80, sm_120). fp32 with
    mma.sync, heads of 32 and 64: ptxas by itself takes 64 registers and a stack.
    """
    K, major = q.shape[-1], tiles.gpu_of(q.device).major
    if q.element_size() == 4:
        return {"maxnreg": 72} if K in (32, 64) and major in (8, 12) else {}
    fits = plain and K <= 80 and major in (9, 10, 11) and c == tiles.FlashConfig(128, 64, 8, stages(q))
    return {"maxnreg": 128} if fits else {}


def longest(T: int) -> int:
    return max(16, tiles.power_of_2(T))


def flash_attention_fwd(
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
    if scale == 0:  # a scale of 0 times the -inf of a masked key is NaN
        q, scale = q * 0, 1.0
    q, k = rotated(q, axis, rope), rotated(k, axis, rope)
    job = problem(q, k, axis, key_mask, v, out)
    c = config("flash_attention_fwd", q, job.T_q, job.T_k)
    mask, s_mask = bytes_of(key_mask, q)
    s_lse = strides(lse.unsqueeze(-1), axis)[:3] if lse.numel() else (0, 0, 0)
    blocks = tiles.ceil_div(job.T_q, c.block_m)
    with rows.guard(q):
        flash_attention_fwd_kernel[(job.sequences * blocks,)](
            q, k, v, mask, out, lse, *strides(q, axis), *strides(k, axis), *strides(v, axis),
            *strides(out, axis), *s_lse, s_mask, blocks, job.outer, job.T_q, job.T_k, scale,
            HAS_LSE=lse.numel() > 0, EVEN=job.T_k % c.block_n == 0, **job.constants, BLOCK_M=c.block_m,
            BLOCK_N=c.block_n, STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
            **register_limit(q, c, plain=key_mask is None and job.T_k % c.block_n == 0),
        )  # fmt: skip
