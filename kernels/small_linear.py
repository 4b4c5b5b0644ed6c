"""small_linear on Triton: a program holds some rows of the weights whole, and every row of x meets them.

int8 weights become fp32 in registers, and a row's sum is multiplied by its scale.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles

# a wider row of weights does not fit a program's registers eight times
MAX_DEPTH = 8192


@triton.jit(do_not_specialize=["n_rows", "N"])
def small_linear_fwd_kernel(
    x_ptr, w_ptr, w_scale_ptr, bias_ptr, gamma_ptr, beta_ptr, residual_ptr, y_ptr, n_rows, N, s_x, s_w, s_residual,
    eps, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    m_n, m_d = o_n < N, o_d < D
    # all loads of weights are under way before the first row is looked at
    p_w = w_ptr + o_n.to(tl.int64)[:, None] * s_w + o_d[None, :]
    b_w = tl.load(p_w, mask=m_n[:, None] & m_d[None, :], other=0.0).to(tl.float32)  # (BLOCK_N, BLOCK_D)
    if HAS_SCALE:
        b_scale = tl.load(w_scale_ptr + o_n, mask=m_n, other=0.0)
    if HAS_NORM:
        b_gamma = tl.load(gamma_ptr + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_beta = tl.load(beta_ptr + o_d, mask=m_d, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_bias = tl.load(bias_ptr + o_n, mask=m_n, other=0.0).to(tl.float32)
    for i_row in range(0, n_rows):
        b_x = tl.load(x_ptr + i_row * s_x + o_d, mask=m_d, other=0.0).to(tl.float32)
        if HAS_NORM:
            b_x = tl.where(m_d, b_x - tl.sum(b_x, 0) / D, 0.0)
            b_x = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / D + eps) * b_gamma + b_beta
        # asked for before the sum over the program's threads, during which it arrives
        if HAS_RESIDUAL:
            b_more = tl.load(residual_ptr + i_row * s_residual + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_y = tl.sum(b_w * b_x[None, :], 1)
        if HAS_SCALE:
            b_y *= b_scale
        if HAS_BIAS:
            b_y += b_bias
        if GELU:
            b_y = 0.5 * b_y * (1 + tl.erf(b_y * 0.7071067811865476))
        if HAS_RESIDUAL:
            b_y += b_more
        tl.store(y_ptr + i_row * N + o_n, b_y.to(y_ptr.dtype.element_ty), mask=m_n)


def config(x: Tensor, weight: Tensor) -> tiles.HeldConfig:
    """Eight rows of weights a program: a layer of 1,024 then has a program for nearly each multiprocessor of an H100.

    A thread holds 64 weights, so that 16 KiB of weights of 16 bits are under way in 4 warps.
    """
    D = tiles.power_of_2(x.shape[1])
    warps = min(16, max(1, 8 * D // (32 * 64)))
    default = tiles.HeldConfig(block_n=8, warps=warps)
    names = rows.NAMES[x.dtype] + ("-int8" if weight.dtype == torch.int8 else "")
    c = tiles.choose("small_linear_fwd", f"D{x.shape[1]}-N{len(weight)}-{names}", default, x.device)
    assert isinstance(c, tiles.HeldConfig)
    return c


def small_linear_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    gelu: bool,
    eps: float,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """x (M, D), weight (N, D), weight_scale (N,) -> (M, N)."""
    (M, D), N = x.shape, len(weight)
    y = rows.empty((M, N), x.dtype, x.device)
    if M:
        c = config(x, weight)
        given = (weight_scale, bias, norm_weight, norm_bias, residual)
        with rows.guard(x):
            small_linear_fwd_kernel[(tiles.ceil_div(N, c.block_n),)](
                x, weight, *(x if t is None else t for t in given), y, M, N,
                x.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0), eps,
                D=D, BLOCK_D=tiles.power_of_2(D), BLOCK_N=c.block_n, HAS_SCALE=weight_scale is not None,
                HAS_BIAS=bias is not None, HAS_NORM=norm_weight is not None, HAS_RESIDUAL=residual is not None,
                GELU=gelu, num_warps=c.warps, enable_fp_fusion=True,
            )  # fmt: skip
    return rows.rounded(y, x.dtype)


def why_not(x: Tensor, weight: Tensor, *others: object) -> str | None:
    if x.dtype not in rows.NAMES:
        return f"the Triton kernels take fp32, bf16 and fp16, got {x.dtype}"
    if x.shape[1] > MAX_DEPTH:
        return f"the Triton kernel holds rows of weights in registers, up to {MAX_DEPTH} wide, got {x.shape[1]}"
    return None
