"""norm_modulate on Triton: h = LN(x) * (1 + scale) + shift, and its gradients in one pass over x and dh."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.rows import centre_row, load_row, row_offset, row_sums, store_row, store_row_8bit, zero_row


@triton.jit(do_not_specialize=["n_1", "n_2", "per_group", "programs"])
def norm_modulate_fwd_kernel(
    x_ptr, shift_ptr, scale_ptr, h_ptr, h_scale_ptr, n_1, n_2, s_x0, s_x1, s_x2, s_shift, s_scale, per_group, programs,
    eps, EIGHT: tl.constexpr, LEADS: tl.constexpr, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Writes h, or with EIGHT its 8-bit values and their scales."""
    i_g = (tl.program_id(0) // programs).to(tl.int64)
    i_first = tl.program_id(0) % programs
    b_shift0, b_shift1 = load_row(shift_ptr + i_g * s_shift, D, BLOCK_0, BLOCK_1)
    b_scale0, b_scale1 = load_row(scale_ptr + i_g * s_scale, D, BLOCK_0, BLOCK_1)
    for i_row in tl.range(i_first, per_group, programs, num_stages=STAGES):
        i_out = i_g * per_group + i_row
        p_x = x_ptr + row_offset(i_out, n_1, n_2, s_x0, s_x1, s_x2, LEADS)
        b_x0, b_x1 = load_row(p_x, D, BLOCK_0, BLOCK_1)
        b_x0, b_x1, b_rstd = centre_row(b_x0, b_x1, eps, D, BLOCK_0, BLOCK_1)
        b_h0 = b_x0 * b_rstd * (1 + b_scale0) + b_shift0
        b_h1 = b_x1 * b_rstd * (1 + b_scale1) + b_shift1
        if EIGHT:
            store_row_8bit(h_ptr + i_out * D, h_scale_ptr + i_out, b_h0, b_h1, D, BLOCK_0, BLOCK_1)
        else:
            store_row(h_ptr + i_out * D, b_h0, b_h1, D, BLOCK_0, BLOCK_1)


@triton.jit(do_not_specialize=["n_1", "n_2", "per_group", "programs"])
def norm_modulate_bwd_kernel(
    dh_ptr, x_ptr, scale_ptr, dx_ptr, partial_ptr, n_1, n_2, s_dh0, s_dh1, s_dh2, s_x0, s_x1, s_x2, s_scale,
    per_group, programs, eps,
    LEADS: tl.constexpr, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes dx, and to partial (G, P, 2, D) this program's share of (dshift, dscale)."""
    i_g = (tl.program_id(0) // programs).to(tl.int64)
    i_first = tl.program_id(0) % programs
    b_scale0, b_scale1 = load_row(scale_ptr + i_g * s_scale, D, BLOCK_0, BLOCK_1)
    b_dshift0, b_dshift1 = zero_row(BLOCK_0, BLOCK_1)
    b_dscale0, b_dscale1 = zero_row(BLOCK_0, BLOCK_1)
    for i_row in tl.range(i_first, per_group, programs, num_stages=STAGES):
        i_out = i_g * per_group + i_row
        p_x = x_ptr + row_offset(i_out, n_1, n_2, s_x0, s_x1, s_x2, LEADS)
        p_dh = dh_ptr + row_offset(i_out, n_1, n_2, s_dh0, s_dh1, s_dh2, LEADS)
        b_x0, b_x1 = load_row(p_x, D, BLOCK_0, BLOCK_1)
        b_dh0, b_dh1 = load_row(p_dh, D, BLOCK_0, BLOCK_1)
        b_x0, b_x1, b_rstd = centre_row(b_x0, b_x1, eps, D, BLOCK_0, BLOCK_1)
        b_x0, b_x1 = b_x0 * b_rstd, b_x1 * b_rstd
        b_dshift0 += b_dh0
        b_dshift1 += b_dh1
        b_dscale0 += b_dh0 * b_x0
        b_dscale1 += b_dh1 * b_x1
        b_dh0, b_dh1 = b_dh0 * (1 + b_scale0), b_dh1 * (1 + b_scale1)
        b_mean, b_slope = row_sums(b_dh0, b_dh1, b_dh0 * b_x0, b_dh1 * b_x1)
        b_mean, b_slope = b_mean / D, b_slope / D
        b_dx0 = (b_dh0 - b_mean - b_x0 * b_slope) * b_rstd
        b_dx1 = (b_dh1 - b_mean - b_x1 * b_slope) * b_rstd
        store_row(dx_ptr + i_out * D, b_dx0, b_dx1, D, BLOCK_0, BLOCK_1)
    p_partial = partial_ptr + tl.program_id(0).to(tl.int64) * 2 * D
    store_row(p_partial, b_dshift0, b_dshift1, D, BLOCK_0, BLOCK_1)
    store_row(p_partial + D, b_dscale0, b_dscale1, D, BLOCK_0, BLOCK_1)


def config(kernel: str, x: Tensor) -> tiles.RowsConfig:
    D = x.shape[-1]
    default = tiles.rows_default(D, 10 if kernel.endswith("fwd") else 5)
    return tiles.choose(kernel, f"D{D}-{rows.NAMES[x.dtype]}", default, x.device)


def norm_modulate_fwd(x: Tensor, shift: Tensor, scale: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
    """h (x.shape) in out_dtype."""
    h = rows.empty(x.shape, out_dtype, x.device)
    launch_forward("norm_modulate_fwd", x, shift, scale, eps, h, None)
    return rows.rounded(h, out_dtype)


def launch_forward(
    kernel: str, x: Tensor, shift: Tensor, scale: Tensor, eps: float, h: Tensor, h_scale: Tensor | None
) -> None:
    """Writes h, or with h_scale its 8-bit values and their scales, by the tiles that are stored for `kernel`."""
    if x.numel() == 0:
        return
    c = config(kernel, x)
    (x,), leads, n, (s_x,) = rows.merge_rows(x)
    groups, D = shift.shape
    per_group, programs = rows.split_rows(x.numel() // D, groups, c, x.device)
    with rows.guard(x):
        norm_modulate_fwd_kernel[(groups * programs,)](
            x, shift, scale, h, h if h_scale is None else h_scale, *n, *s_x, shift.stride(0), scale.stride(0),
            per_group, programs, eps,
            EIGHT=h_scale is not None, LEADS=leads, **rows.pieces(D, c.warps, x), STAGES=c.stages, num_warps=c.warps,
            enable_fp_fusion=True,
        )  # fmt: skip


def norm_modulate_bwd(dh: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dshift, dscale) in the dtypes of x and scale; mean and std are computed again from x."""
    dx = rows.empty(x.shape, x.dtype, x.device)
    groups, D = scale.shape
    if x.numel() == 0:
        return rows.rounded(dx, x.dtype), torch.zeros_like(scale), torch.zeros_like(scale)
    c = config("norm_modulate_bwd", x)
    (dh, xs), leads, n, (s_dh, s_x) = rows.merge_rows(dh, x)
    per_group, programs = rows.split_rows(x.numel() // D, groups, c, x.device, rows.PARTIAL_ROWS)
    partials = torch.empty((groups, programs, 2, D), dtype=torch.float32, device=x.device)
    with rows.guard(x):
        norm_modulate_bwd_kernel[(groups * programs,)](
            dh, xs, scale, dx, partials, *n, *s_dh, *s_x, scale.stride(0), per_group, programs, eps,
            LEADS=leads, **rows.pieces(D, c.warps, dh, xs), STAGES=c.stages, num_warps=c.warps,
            enable_fp_fusion=True,
        )  # fmt: skip
    dshift, dscale = rows.sum_partials(partials, scale.dtype)
    return rows.rounded(dx, x.dtype), dshift, dscale


def why_not(x: Tensor, shift: Tensor, scale: Tensor, *others: Any) -> str | None:
    return rows.why_not_rows(x, shift, scale)
