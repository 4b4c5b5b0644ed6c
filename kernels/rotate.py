"""Rotary embedding of heads before the streaming attention, and its inverse on the gradients.

Inside that kernel it would be repeated for every block of queries or keys, and the tile has no registers left for it.
"""

import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.attention_tiles import (
    Rope,
    load_heads,
    offset,
    place,
    problem,
    rotate_heads,
    store_heads,
    strides,
)


@triton.jit(do_not_specialize=["blocks", "outer", "T"])
def rotate_kernel(
    x_ptr, cos_ptr, sin_ptr, out_ptr, s_xb, s_xo, s_xt, s_xh, s_outb, s_outo, s_outt, s_outh, blocks, outer, T,
    SIGN: tl.constexpr, H: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    i_t, i_b, i_o, i_h = place(tl.program_id(0), blocks, outer, H)
    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = (o_t < T)[:, None]
    p_x = x_ptr + offset(i_b, i_o, i_h, o_t, s_xb, s_xo, s_xt, s_xh, ALIGN)
    b_x0, b_x1 = load_heads(p_x, m_t, K, K_MAIN, K_TAIL, True)
    b_x0, b_x1 = rotate_heads(b_x0, b_x1, cos_ptr, sin_ptr, o_t[:, None], T, SIGN, K, K_MAIN, K_TAIL)
    p_out = out_ptr + offset(i_b, i_o, i_h, o_t, s_outb, s_outo, s_outt, s_outh, ALIGN)
    store_heads(p_out, b_x0, b_x1, m_t, K, K_MAIN, K_TAIL)


def rotate(x: Tensor, axis: str, rope: Rope, sign: int, out: Tensor) -> None:
    """Writes x (B, F, N, H, K) rotated by sign * angle to out, which may be x itself."""
    job = problem(x, x, axis, None, out)
    cos, sin = (t.contiguous() for t in rope)
    block = min(64, tiles.power_of_2(job.T_q))
    blocks = tiles.ceil_div(job.T_q, block)
    constants = {name: job.constants[name] for name in ("H", "K", "K_MAIN", "K_TAIL", "ALIGN")}
    with rows.guard(x):
        rotate_kernel[(job.sequences * blocks,)](
            x, cos, sin, out, *strides(x, axis), *strides(out, axis), blocks, job.outer, job.T_q,
            SIGN=sign, **constants, BLOCK_T=block, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def rotated(x: Tensor, axis: str, rope: Rope | None) -> Tensor:
    """x rotated by rope, or x itself without one."""
    if rope is None:
        return x
    out = rows.empty(x.shape, x.dtype, x.device)
    rotate(x, axis, rope, 1, out)
    return rows.rounded(out, x.dtype)
