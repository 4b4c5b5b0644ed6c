"""linear_int8 on Triton: a product of int8 rows and weights in int32, scaled, biased and rounded as it is stored.

torch._int_mm writes int32 sums, twice the bytes of a bf16 result, which another pass would have to read. From compute
capability 9.0 on tiles are fetched by TMA, and a program goes on to another tile while the last one is stored.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from latte_fast.kernels import rows, tiles


@triton.jit(do_not_specialize=["rows_"])
def linear_int8_fwd_kernel(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, bias_ptr, out_ptr, rows_, s_w,
    HAS_BIAS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out (rows, N) = x (rows, K) w^T (N, K) * x_scale * w_scale + bias; a tile of rows and columns a program."""
    i_m, i_n = place(tl.program_id(0), rows_, N, BLOCK_M, BLOCK_N, GROUP)
    o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
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
    store_scaled(b_sum, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr, o_m, o_n, rows_, HAS_BIAS, N)


@triton.jit(do_not_specialize=["rows_", "programs"])
def linear_int8_tma_fwd_kernel(
    x, w, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr, rows_, programs,
    HAS_BIAS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """As linear_int8_fwd_kernel; x and w are descriptors of tiles, a program walks every `programs`-th tile."""
    for i_tile in tl.range(tl.program_id(0), tl.cdiv(rows_, BLOCK_M) * tl.cdiv(N, BLOCK_N), programs, flatten=True):
        i_m, i_n = place(i_tile, rows_, N, BLOCK_M, BLOCK_N, GROUP)
        b_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.int32)
        for k in range(0, K, BLOCK_K):  # what lies past the end is read as zeros
            b_x, b_w = x.load([i_m * BLOCK_M, k]), w.load([i_n * BLOCK_N, k])
            b_sum = tl.dot(b_x, b_w.T, b_sum, out_dtype=tl.int32)
        o_m, o_n = i_m * BLOCK_M + tl.arange(0, BLOCK_M), i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        store_scaled(b_sum, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr, o_m, o_n, rows_, HAS_BIAS, N)


@triton.jit
def place(i_tile, rows_, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of a tile: those that follow each other share rows and columns, which then are in the L2 cache."""
    across: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_group = i_tile // (GROUP * across)
    down = tl.minimum(tl.cdiv(rows_, BLOCK_M) - i_group * GROUP, GROUP)
    i_in = i_tile % (GROUP * across)
    return i_group * GROUP + i_in % down, i_in // down


@triton.jit
def store_scaled(
    b_sum, x_scale_ptr, w_scale_ptr, bias_ptr, out_ptr, o_m, o_n, rows_, HAS_BIAS: tl.constexpr, N: tl.constexpr
):
    b_out = b_sum.to(tl.float32) * tl.load(x_scale_ptr + o_m, mask=o_m < rows_)[:, None]
    b_out *= tl.load(w_scale_ptr + o_n, mask=o_n < N)[None, :]
    if HAS_BIAS:
        b_out += tl.load(bias_ptr + o_n, mask=o_n < N).to(tl.float32)[None, :]
    p_out = out_ptr + o_m.to(tl.int64)[:, None] * N + o_n[None, :]
    tl.store(p_out, b_out.to(out_ptr.dtype.element_ty), mask=(o_m < rows_)[:, None] & (o_n < N)[None, :])


@dataclass(frozen=True)
class Tile:
    """A tile of the product, how many warps and stages of loads work on it, and programs of a multiprocessor.

    With 0 programs each tile has one of its own, which loads without TMA.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    programs: int = 0


def tile(count: int, device: torch.device) -> Tile:
    """Large tiles where there are rows for as many as the multiprocessors, by the GPU's generation."""
    gpu = tiles.gpu_of(device)
    if count < 128 * gpu.multiprocessors // 8:
        return Tile(64, 128, 128, 4, 3)
    return Tile(128, 256, 128, 8, 3, 1) if gpu.major >= 9 else Tile(128, 128, 128, 8, 3)


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
    if not count:
        return rows.rounded(out, out_dtype)
    c = chosen or tile(count, x.device)
    values = x.contiguous().view(count, K)
    number = tiles.ceil_div(count, c.rows) * tiles.ceil_div(N, c.columns)
    scales = (x_scale, weight_scale, weight_scale if bias is None else bias, out, count)
    options = {
        "HAS_BIAS": bias is not None, "N": N, "K": K, "BLOCK_M": c.rows, "BLOCK_N": c.columns, "BLOCK_K": c.depth,
        "GROUP": 8, "num_warps": c.warps, "num_stages": c.stages, "enable_fp_fusion": True,
    }  # fmt: skip
    with rows.guard(x):
        if c.programs and fits_tma(values, weight):
            programs = min(number, c.programs * tiles.gpu_of(x.device).multiprocessors)
            described = (described_by(values, c.rows, c.depth), described_by(weight, c.columns, c.depth))
            linear_int8_tma_fwd_kernel[(programs,)](*described, *scales, programs, **options)
        else:
            x_scale, weight_scale, bias_or, out_, _ = scales
            linear_int8_fwd_kernel[(number,)](
                values, x_scale, weight, weight_scale, bias_or, out_, count, weight.stride(0), **options
            )
    return rows.rounded(out, out_dtype)


def described_by(x: Tensor, rows_: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows_, columns])


def fits_tma(*tensors: Tensor) -> bool:
    """Whether rows begin at multiples of 16 bytes."""
    return all(t.data_ptr() % 16 == 0 and t.stride(0) % 16 == 0 for t in tensors)


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
