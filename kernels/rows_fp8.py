"""rows_fp8 on Triton: each row as 8-bit values and a scale, in one pass; of int8 too."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.rows import load_row, row_offset, store_row_8bit


@triton.jit(do_not_specialize=["n_1", "n_2", "rows_", "programs"])
def rows_8bit_fwd_kernel(
    x_ptr, values_ptr, scale_ptr, n_1, n_2, s_x0, s_x1, s_x2, rows_, programs,
    LEADS: tl.constexpr, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    for i_row in tl.range(tl.program_id(0), rows_, programs, num_stages=STAGES):
        i_row = tl.cast(i_row, tl.int64)
        p_x = x_ptr + row_offset(i_row, n_1, n_2, s_x0, s_x1, s_x2, LEADS)
        b_x0, b_x1 = load_row(p_x, D, BLOCK_0, BLOCK_1)
        store_row_8bit(values_ptr + i_row * D, scale_ptr + i_row, b_x0, b_x1, D, BLOCK_0, BLOCK_1)


def config(kernel: str, x: Tensor) -> tiles.RowsConfig:
    D = x.shape[-1]
    return tiles.choose(kernel, f"D{D}-{rows.NAMES[x.dtype]}", tiles.rows_default(D, 14), x.device)


def rows_fp8_fwd(x: Tensor) -> tuple[Tensor, Tensor]:
    """(values (x.shape), their scales (..., 1))."""
    return launch_forward("rows_fp8_fwd", x, rows.FP8)


def launch_forward(kernel: str, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values of an 8-bit dtype and their scales, by the tiles that are stored for `kernel`."""
    values, scale = rows.empty_8bit(x, dtype)
    if x.numel() > 0:
        c = config(kernel, x)
        (xs,), leads, n, (s_x,) = rows.merge_rows(x)
        D = x.shape[-1]
        count, programs = rows.split_rows(x.numel() // D, 1, c, x.device)
        with rows.guard(x):
            rows_8bit_fwd_kernel[(programs,)](
                xs, values, scale, *n, *s_x, count, programs,
                LEADS=leads, **rows.pieces(D, c.warps, xs), STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
            )  # fmt: skip
    return rows.rounded(values, dtype), scale


def why_not(x: Tensor) -> str | None:
    return rows.why_not_fp8(x)
