"""linear_int8 on Triton: a product of int8 rows and weights in int32, scaled, biased and rounded as it is stored.

torch._int_mm writes int32 sums, twice the bytes of a bf16 result, which another pass would have to read.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles


@triton.jit(do_not_specialize=["rows_"])
def linear_int8_fwd_kernel(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, bias_ptr, out_ptr, rows_, s_w,
    HAS_BIAS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out (rows, N) = x (rows, K) w^T (N, K) * x_scale * w_scale + bias; a tile of rows and columns a program."""
    # programs that follow each other share rows and columns, which then are in the L2 cache
    across: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_group = tl.program_id(0) // (GROUP * across)
    down = tl.minimum(tl.cdiv(rows_, BLOCK_M) - i_group * GROUP, GROUP)
    i_in = tl.program_id(0) % (GROUP * across)
    o_m = (i_group * GROUP + i_in % down) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_in // down * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    # rows and columns past the end are read at the beginning, and not stored
    p_x = x_ptr + (o_m % rows_).to(tl.int64)[:, None] * K + o_k[None, :]
    p_w = w_ptr + (o_n % N).to(tl.int64)[None, :] * s_w + o_k[:, None]
    b_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.int32)
    for k in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            b_x, b_w = tl.load(p_x), tl.load(p_w)
        else:
            b_x = tl.load(p_x, mask=(k + o_k < K)[None, :], other=0)
            b_w = tl.load(p_w, mask=(k + o_k < K)[:, None], other=0)
        b_sum = tl.dot(b_x, b_w, b_sum, out_dtype=tl.int32)
        p_x += BLOCK_K
        p_w += BLOCK_K
    b_out = b_sum.to(tl.float32) * tl.load(x_scale_ptr + o_m % rows_)[:, None]
    b_out *= tl.load(w_scale_ptr + o_n % N)[None, :]
    if HAS_BIAS:
        b_out += tl.load(bias_ptr + o_n % N).to(tl.float32)[None, :]
    p_out = out_ptr + o_m.to(tl.int64)[:, None] * N + o_n[None, :]
    tl.store(p_out, b_out.to(out_ptr.dtype.element_ty), mask=(o_m < rows_)[:, None] & (o_n < N)[None, :])


@dataclass(frozen=True)
class Tile:
    """A tile of the product, and how many warps and stages of loads work on it."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def tile(count: int, device: torch.device) -> Tile:
    """Large tiles where there are rows for as many as the multiprocessors, by the GPU's generation."""
    gpu = tiles.gpu_of(device)
    if count < 128 * gpu.multiprocessors // 8:
        return Tile(64, 128, 128, 4, 3)
    return Tile(128, 256, 128, 8, 3) if gpu.major >= 9 else Tile(128, 128, 128, 8, 3)


def linear_int8_fwd(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    chosen: Tile | None = None,
) -> Tensor:
    """x (..., K) int8, x_scale (..., 1), weight (N, K) int8, weight_scale (N,) -> (..., N) in out_dtype."""
    N, K = weight.shape
    out = rows.empty((*x.shape[:-1], N), out_dtype, x.device)
    count = x.numel() // K
    if count:
        c = chosen or tile(count, x.device)
        grid = (tiles.ceil_div(count, c.rows) * tiles.ceil_div(N, c.columns),)
        with rows.guard(x):
            linear_int8_fwd_kernel[grid](
                x.contiguous(), x_scale, weight, weight_scale, weight_scale if bias is None else bias, out, count,
                weight.stride(0), HAS_BIAS=bias is not None, N=N, K=K, BLOCK_M=c.rows, BLOCK_N=c.columns,
                BLOCK_K=c.depth, GROUP=8, num_warps=c.warps, num_stages=c.stages, enable_fp_fusion=True,
            )  # fmt: skip
    return rows.rounded(out, out_dtype)


def why_not(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> str | None:
    if x.dtype != torch.int8:
        return f"the Triton kernel multiplies signed integers, got {x.dtype}"
    if out_dtype not in rows.NAMES:
        return f"the Triton kernel writes fp32, bf16 and fp16, got {out_dtype}"
    if weight.stride(1) != 1:
        return f"weight must have a contiguous last dim, got strides {weight.stride()}"
    if x.numel() // x.shape[-1] >= 2**31:
        return f"the Triton kernel counts rows in 32 bits, got {x.numel() // x.shape[-1]}"
    return None
