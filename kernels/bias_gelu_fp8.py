"""bias_gelu_fp8 on Triton: tanh-GELU(u + b) * factor, a whole row a program, as 8-bit values; of int8 too."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.bias_gelu import exponential
from latte_fast.kernels.rows import load_row, row_offset, store_row_8bit


@triton.jit(do_not_specialize=["n_1", "n_2", "rows_", "programs"])
def bias_gelu_8bit_fwd_kernel(
    u_ptr, b_ptr, factor_ptr, values_ptr, scale_ptr, n_1, n_2, s_u0, s_u1, s_u2, rows_, programs,
    HAS_FACTOR: tl.constexpr, LEADS: tl.constexpr, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    b_b0, b_b1 = load_row(b_ptr, D, BLOCK_0, BLOCK_1)
    if HAS_FACTOR:
        b_factor0, b_factor1 = load_row(factor_ptr, D, BLOCK_0, BLOCK_1)
    for i_row in tl.range(tl.program_id(0), rows_, programs, num_stages=STAGES):
        i_row = tl.cast(i_row, tl.int64)
        p_u = u_ptr + row_offset(i_row, n_1, n_2, s_u0, s_u1, s_u2, LEADS)
        b_v0, b_v1 = load_row(p_u, D, BLOCK_0, BLOCK_1)
        b_v0, b_v1 = b_v0 + b_b0, b_v1 + b_b1
        b_a0, b_a1 = b_v0 / (1 + exponential(b_v0)), b_v1 / (1 + exponential(b_v1))
        if HAS_FACTOR:
            b_a0, b_a1 = b_a0 * b_factor0, b_a1 * b_factor1
        store_row_8bit(values_ptr + i_row * D, scale_ptr + i_row, b_a0, b_a1, D, BLOCK_0, BLOCK_1)


def config(kernel: str, u: Tensor) -> tiles.RowsConfig:
    D = u.shape[-1]
    return tiles.choose(kernel, f"D{D}-{rows.NAMES[u.dtype]}", tiles.rows_default(D, 12), u.device)


def bias_gelu_fp8_fwd(u: Tensor, b: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """(values (u.shape), their scales (..., 1)); u (..., M), b (M,), factor (M,) fp32."""
    return launch_forward("bias_gelu_fp8_fwd", u, b, factor, rows.FP8)


def launch_forward(
    kernel: str, u: Tensor, b: Tensor, factor: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Values of an 8-bit dtype and their scales, by the tiles that are stored for `kernel`."""
    values, scale = rows.empty_8bit(u, dtype)
    if u.numel() > 0:
        c = config(kernel, u)
        (us,), leads, n, (s_u,) = rows.merge_rows(u)
        D = u.shape[-1]
        count, programs = rows.split_rows(u.numel() // D, 1, c, u.device)
        with rows.guard(u):
            bias_gelu_8bit_fwd_kernel[(programs,)](
                us, b, b if factor is None else factor, values, scale, *n, *s_u, count, programs,
                HAS_FACTOR=factor is not None, LEADS=leads, **rows.pieces(D, c.warps, us), STAGES=c.stages,
                num_warps=c.warps, enable_fp_fusion=True,
            )  # fmt: skip
    return rows.rounded(values, dtype), scale


def why_not(u: Tensor, b: Tensor, factor: Tensor | None = None) -> str | None:
    return rows.why_not_fp8(u, b)
