"""pooled_norm on Triton: the mean over runs of rows of LN(x) * (1 + scale) + shift, and its gradients.

A program sums normed rows of a run; where there are few runs, several programs share one.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.rows import centre_row, load_row, row_offset, row_sum, store_row, zero_row

# dimension of (B, F, N, D) that the mean is over
AXES = {"space": 2, "time": 1}


@triton.jit(do_not_specialize=["n_1", "n_2", "length", "programs"])
def pooled_norm_fwd_kernel(
    x_ptr, partial_ptr, n_1, n_2, s_x0, s_x1, s_x2, length, programs, eps,
    LEADS: tl.constexpr, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes to partial (runs, P, D) this program's share of the sum of LN(x)."""
    i_run = (tl.program_id(0) // programs).to(tl.int64)
    b_sum0, b_sum1 = zero_row(BLOCK_0, BLOCK_1)
    for i_row in tl.range(tl.program_id(0) % programs, length, programs, num_stages=STAGES):
        p_x = x_ptr + row_offset(i_run * length + i_row, n_1, n_2, s_x0, s_x1, s_x2, LEADS)
        b_x0, b_x1 = load_row(p_x, D, BLOCK_0, BLOCK_1)
        b_x0, b_x1, b_rstd = centre_row(b_x0, b_x1, eps, D, BLOCK_0, BLOCK_1)
        b_sum0 += b_x0 * b_rstd
        b_sum1 += b_x1 * b_rstd
    store_row(partial_ptr + tl.program_id(0).to(tl.int64) * D, b_sum0, b_sum1, D, BLOCK_0, BLOCK_1)


@triton.jit(do_not_specialize=["n_1", "n_2", "length", "programs", "per_group"])
def pooled_norm_bwd_kernel(
    dh_ptr, x_ptr, scale_ptr, dx_ptr, partial_ptr, n_1, n_2, s_x0, s_x1, s_x2, s_dx0, s_dx1, s_dx2, s_scale,
    length, programs, per_group, eps,
    LEADS: tl.constexpr, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes dx, and to partial (runs, P, D) this program's share of the sum of LN(x)."""
    i_run = (tl.program_id(0) // programs).to(tl.int64)
    b_scale0, b_scale1 = load_row(scale_ptr + i_run // per_group * s_scale, D, BLOCK_0, BLOCK_1)
    b_dh0, b_dh1 = load_row(dh_ptr + i_run * D, D, BLOCK_0, BLOCK_1)
    # the gradient of every normed row of the run
    b_dh0, b_dh1 = b_dh0 * (1 + b_scale0) / length, b_dh1 * (1 + b_scale1) / length
    b_mean = row_sum(b_dh0, b_dh1) / D
    b_sum0, b_sum1 = zero_row(BLOCK_0, BLOCK_1)
    for i_row in tl.range(tl.program_id(0) % programs, length, programs, num_stages=STAGES):
        i_in = i_run * length + i_row
        p_x = x_ptr + row_offset(i_in, n_1, n_2, s_x0, s_x1, s_x2, LEADS)
        b_x0, b_x1 = load_row(p_x, D, BLOCK_0, BLOCK_1)
        b_x0, b_x1, b_rstd = centre_row(b_x0, b_x1, eps, D, BLOCK_0, BLOCK_1)
        b_x0, b_x1 = b_x0 * b_rstd, b_x1 * b_rstd
        b_sum0 += b_x0
        b_sum1 += b_x1
        b_slope = row_sum(b_dh0 * b_x0, b_dh1 * b_x1) / D
        b_dx0 = (b_dh0 - b_mean - b_x0 * b_slope) * b_rstd
        b_dx1 = (b_dh1 - b_mean - b_x1 * b_slope) * b_rstd
        p_dx = dx_ptr + row_offset(i_in, n_1, n_2, s_dx0, s_dx1, s_dx2, LEADS)
        store_row(p_dx, b_dx0, b_dx1, D, BLOCK_0, BLOCK_1)
    store_row(partial_ptr + tl.program_id(0).to(tl.int64) * D, b_sum0, b_sum1, D, BLOCK_0, BLOCK_1)


def config(kernel: str, x: Tensor) -> tiles.RowsConfig:
    D = x.shape[-1]
    default = tiles.rows_default(D, 10 if kernel.endswith("fwd") else 5)
    return tiles.choose(kernel, f"D{D}-{rows.NAMES[x.dtype]}", default, x.device)


def runs_of(x: Tensor, axis: str) -> Tensor:
    """x (B, F, N, D) with the axis of the mean third."""
    return x if axis == "space" else x.transpose(1, 2)


def split_runs(runs: Tensor, c: tiles.RowsConfig) -> tuple[int, int, int]:
    """(number of runs, rows of a run, programs a run), each of PARTIAL_ROWS rows or more if possible."""
    count, length = runs.shape[0] * runs.shape[1], runs.shape[2]
    budget = c.programs_per_sm * tiles.gpu_of(runs.device).multiprocessors
    return count, length, max(1, min(length // rows.PARTIAL_ROWS, budget // count))


def pooled_norm_fwd(x: Tensor, shift: Tensor, scale: Tensor, axis: str, eps: float, out_dtype: torch.dtype) -> Tensor:
    """x (B, F, N, D) -> (B, F, 1, D) for space, (B, 1, N, D) for time, in out_dtype."""
    runs, (groups, D) = runs_of(x, axis), scale.shape
    if x.numel() == 0:
        return torch.empty((*runs.shape[:2], D), dtype=out_dtype, device=x.device).unsqueeze(AXES[axis])
    c = config("pooled_norm_fwd", x)
    count, length, programs = split_runs(runs, c)
    partials = torch.empty((count, programs, D), dtype=torch.float32, device=x.device)
    (xs,), leads, n, (s_x,) = rows.merge_rows(runs)
    with rows.guard(x):
        pooled_norm_fwd_kernel[(count * programs,)](
            xs, partials, *n, *s_x, length, programs, eps,
            LEADS=leads, **rows.pieces(D, c.warps, xs), STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
        )  # fmt: skip
    # a row of each run, little beside the rows of x
    mean = (partials.sum(1) / length).view(groups, -1, D)
    h = torch.addcmul(shift.float()[:, None], mean, 1 + scale.float()[:, None]).to(out_dtype)
    return h.view(*runs.shape[:2], D).unsqueeze(AXES[axis])


def pooled_norm_bwd(dh: Tensor, x: Tensor, scale: Tensor, axis: str, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dshift, dscale) in the dtypes of x and scale; what a row is normed by is computed again."""
    dx = rows.empty(x.shape, x.dtype, x.device)
    groups, D = scale.shape
    if x.numel() == 0:
        return rows.rounded(dx, x.dtype), torch.zeros_like(scale), torch.zeros_like(scale)
    runs = runs_of(x, axis)
    c = config("pooled_norm_bwd", x)
    count, length, programs = split_runs(runs, c)
    partials = torch.empty((count, programs, D), dtype=torch.float32, device=x.device)
    (xs, dxs), leads, n, (s_x, s_dx) = rows.merge_rows(runs, runs_of(dx, axis))
    with rows.guard(x):
        pooled_norm_bwd_kernel[(count * programs,)](
            dh, xs, scale, dxs, partials, *n, *s_x, *s_dx, scale.stride(0), length, programs, count // groups, eps,
            LEADS=leads, **rows.pieces(D, c.warps, xs), STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
        )  # fmt: skip
    by_group = dh.float().view(groups, -1, D)
    dscale = (by_group * (partials.sum(1) / length).view(by_group.shape)).sum(1)
    return rows.rounded(dx, x.dtype), by_group.sum(1).to(scale.dtype), dscale.to(scale.dtype)


def why_not(x: Tensor, shift: Tensor, scale: Tensor, *others: Any) -> str | None:
    return rows.why_not_rows(x, shift, scale)
