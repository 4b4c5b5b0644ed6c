"""gate_residual_norm_modulate on Triton: x' = x + gate * (y + y_bias) + pos, h = LN(x') * (1 + scale) + shift."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.rows import centre_row, load_row, row_offset, row_sums, store_row, store_row_8bit, zero_row


@triton.jit(do_not_specialize=["n_1", "n_2", "per_group", "programs"])
def gate_residual_norm_modulate_fwd_kernel(
    x_ptr, y_ptr, gate_ptr, shift_ptr, scale_ptr, bias_ptr, pos_ptr, x_out_ptr, h_ptr, h_scale_ptr, n_1, n_2,
    s_x0, s_x1, s_x2, s_y0, s_y1, s_y2, s_pos0, s_pos1, s_pos2, s_gate, s_shift, s_scale, per_group, programs, eps,
    HAS_BIAS: tl.constexpr, HAS_POS: tl.constexpr, EIGHT: tl.constexpr, LEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes x', and h or with EIGHT its 8-bit values and their scales."""
    i_g = (tl.program_id(0) // programs).to(tl.int64)
    i_first = tl.program_id(0) % programs
    b_gate0, b_gate1 = load_row(gate_ptr + i_g * s_gate, D, BLOCK_0, BLOCK_1)
    b_shift0, b_shift1 = load_row(shift_ptr + i_g * s_shift, D, BLOCK_0, BLOCK_1)
    b_scale0, b_scale1 = load_row(scale_ptr + i_g * s_scale, D, BLOCK_0, BLOCK_1)
    if HAS_BIAS:
        b_bias0, b_bias1 = load_row(bias_ptr, D, BLOCK_0, BLOCK_1)
    for i_row in tl.range(i_first, per_group, programs, num_stages=STAGES):
        i_out = i_g * per_group + i_row
        p_x = x_ptr + row_offset(i_out, n_1, n_2, s_x0, s_x1, s_x2, LEADS)
        p_y = y_ptr + row_offset(i_out, n_1, n_2, s_y0, s_y1, s_y2, LEADS)
        b_x0, b_x1 = load_row(p_x, D, BLOCK_0, BLOCK_1)
        b_y0, b_y1 = load_row(p_y, D, BLOCK_0, BLOCK_1)
        if HAS_BIAS:
            b_y0, b_y1 = b_y0 + b_bias0, b_y1 + b_bias1
        b_x0, b_x1 = b_x0 + b_gate0 * b_y0, b_x1 + b_gate1 * b_y1
        if HAS_POS:
            p_pos = pos_ptr + row_offset(i_out, n_1, n_2, s_pos0, s_pos1, s_pos2, LEADS)
            b_pos0, b_pos1 = load_row(p_pos, D, BLOCK_0, BLOCK_1)
            b_x0, b_x1 = b_x0 + b_pos0, b_x1 + b_pos1
        # h is the norm of what is stored, which is what the backward reads
        b_x0 = b_x0.to(x_out_ptr.dtype.element_ty).to(tl.float32)
        b_x1 = b_x1.to(x_out_ptr.dtype.element_ty).to(tl.float32)
        store_row(x_out_ptr + i_out * D, b_x0, b_x1, D, BLOCK_0, BLOCK_1)
        b_x0, b_x1, b_rstd = centre_row(b_x0, b_x1, eps, D, BLOCK_0, BLOCK_1)
        b_h0 = b_x0 * b_rstd * (1 + b_scale0) + b_shift0
        b_h1 = b_x1 * b_rstd * (1 + b_scale1) + b_shift1
        if EIGHT:
            store_row_8bit(h_ptr + i_out * D, h_scale_ptr + i_out, b_h0, b_h1, D, BLOCK_0, BLOCK_1)
        else:
            store_row(h_ptr + i_out * D, b_h0, b_h1, D, BLOCK_0, BLOCK_1)


@triton.jit(do_not_specialize=["n_1", "n_2", "per_group", "programs"])
def gate_residual_norm_modulate_bwd_kernel(
    dx_out_ptr, dh_ptr, x_out_ptr, y_ptr, bias_ptr, gate_ptr, scale_ptr, dx_ptr, dy_ptr, partial_ptr, n_1, n_2,
    s_dx0, s_dx1, s_dx2, s_dh0, s_dh1, s_dh2, s_x0, s_x1, s_x2, s_y0, s_y1, s_y2, s_gate, s_scale,
    per_group, programs, eps,
    HAS_DX: tl.constexpr, HAS_DH: tl.constexpr, HAS_BIAS: tl.constexpr, LEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes dx, dy, and to partial (G, P, S, D) this program's share of (dgate, dshift, dscale[, dy_bias])."""
    i_g = (tl.program_id(0) // programs).to(tl.int64)
    i_first = tl.program_id(0) % programs
    b_gate0, b_gate1 = load_row(gate_ptr + i_g * s_gate, D, BLOCK_0, BLOCK_1)
    b_dgate0, b_dgate1 = zero_row(BLOCK_0, BLOCK_1)
    if HAS_DH:
        b_scale0, b_scale1 = load_row(scale_ptr + i_g * s_scale, D, BLOCK_0, BLOCK_1)
        b_dshift0, b_dshift1 = zero_row(BLOCK_0, BLOCK_1)
        b_dscale0, b_dscale1 = zero_row(BLOCK_0, BLOCK_1)
    # sum(dx * (y + bias)) = sum(dx * y) + bias * sum(dx), and sum(dy) = gate * sum(dx): one more sum serves both
    if HAS_BIAS:
        b_sum0, b_sum1 = zero_row(BLOCK_0, BLOCK_1)
    for i_row in tl.range(i_first, per_group, programs, num_stages=STAGES):
        i_out = i_g * per_group + i_row
        b_dx0, b_dx1 = zero_row(BLOCK_0, BLOCK_1)
        if HAS_DH:
            p_dh = dh_ptr + row_offset(i_out, n_1, n_2, s_dh0, s_dh1, s_dh2, LEADS)
            p_x = x_out_ptr + row_offset(i_out, n_1, n_2, s_x0, s_x1, s_x2, LEADS)
            b_dh0, b_dh1 = load_row(p_dh, D, BLOCK_0, BLOCK_1)
            b_x0, b_x1 = load_row(p_x, D, BLOCK_0, BLOCK_1)
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
        if HAS_DX:  # added last, which keeps fewer registers in use
            p_dx_out = dx_out_ptr + row_offset(i_out, n_1, n_2, s_dx0, s_dx1, s_dx2, LEADS)
            b_dx_out0, b_dx_out1 = load_row(p_dx_out, D, BLOCK_0, BLOCK_1)
            b_dx0, b_dx1 = b_dx0 + b_dx_out0, b_dx1 + b_dx_out1
        store_row(dx_ptr + i_out * D, b_dx0, b_dx1, D, BLOCK_0, BLOCK_1)
        p_y = y_ptr + row_offset(i_out, n_1, n_2, s_y0, s_y1, s_y2, LEADS)
        b_y0, b_y1 = load_row(p_y, D, BLOCK_0, BLOCK_1)
        b_dgate0 += b_dx0 * b_y0
        b_dgate1 += b_dx1 * b_y1
        if HAS_BIAS:
            b_sum0 += b_dx0
            b_sum1 += b_dx1
        store_row(dy_ptr + i_out * D, b_dx0 * b_gate0, b_dx1 * b_gate1, D, BLOCK_0, BLOCK_1)
    p_partial = partial_ptr + tl.program_id(0).to(tl.int64) * (3 + HAS_BIAS) * D
    if HAS_BIAS:
        b_bias0, b_bias1 = load_row(bias_ptr, D, BLOCK_0, BLOCK_1)
        b_dgate0 += b_bias0 * b_sum0
        b_dgate1 += b_bias1 * b_sum1
        b_sum0, b_sum1 = b_sum0 * b_gate0, b_sum1 * b_gate1
        store_row(p_partial + 3 * D, b_sum0, b_sum1, D, BLOCK_0, BLOCK_1)
    store_row(p_partial, b_dgate0, b_dgate1, D, BLOCK_0, BLOCK_1)
    if HAS_DH:
        store_row(p_partial + D, b_dshift0, b_dshift1, D, BLOCK_0, BLOCK_1)
        store_row(p_partial + 2 * D, b_dscale0, b_dscale1, D, BLOCK_0, BLOCK_1)
    else:
        b_none0, b_none1 = zero_row(BLOCK_0, BLOCK_1)
        store_row(p_partial + D, b_none0, b_none1, D, BLOCK_0, BLOCK_1)
        store_row(p_partial + 2 * D, b_none0, b_none1, D, BLOCK_0, BLOCK_1)


def config(kernel: str, x: Tensor) -> tiles.RowsConfig:
    D = x.shape[-1]
    default = tiles.rows_default(D, 6 if kernel.endswith("fwd") else 4)
    return tiles.choose(kernel, f"D{D}-{rows.NAMES[x.dtype]}", default, x.device)


def gate_residual_norm_modulate_fwd(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    y_bias: Tensor | None,
    pos: Tensor | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(x' in x's dtype, h in out_dtype)."""
    x_out, h = (rows.empty(x.shape, dtype, x.device) for dtype in (x.dtype, out_dtype))
    kernel = "gate_residual_norm_modulate_fwd"
    launch_forward(kernel, x, y, gate, shift, scale, eps, y_bias, pos, x_out, h, None)
    return rows.rounded(x_out, x.dtype), rows.rounded(h, out_dtype)


def launch_forward(
    kernel: str,
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    y_bias: Tensor | None,
    pos: Tensor | None,
    x_out: Tensor,
    h: Tensor,
    h_scale: Tensor | None,
) -> None:
    """Writes x', and h or with h_scale its 8-bit values and their scales, by the tiles that are stored for `kernel`."""
    if x.numel() == 0:
        return
    c = config(kernel, x)
    groups, D = gate.shape
    given = (x, y) if pos is None else (x, y, pos.expand(x.shape))
    tensors, leads, n, s = rows.merge_rows(*given)
    if pos is None:
        tensors, s = [*tensors, tensors[0]], [*s, s[0]]
    xs, ys, poss = tensors
    per_group, programs = rows.split_rows(x.numel() // D, groups, c, x.device)
    with rows.guard(x):
        gate_residual_norm_modulate_fwd_kernel[(groups * programs,)](
            xs, ys, gate, shift, scale, gate if y_bias is None else y_bias, poss, x_out, h,
            h if h_scale is None else h_scale,
            *n, *s[0], *s[1], *s[2], gate.stride(0), shift.stride(0), scale.stride(0), per_group, programs, eps,
            HAS_BIAS=y_bias is not None, HAS_POS=pos is not None, EIGHT=h_scale is not None, LEADS=leads,
            **rows.pieces(D, c.warps, xs, ys),
            STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
        )  # fmt: skip


def gate_residual_norm_modulate_bwd(
    dx_out: Tensor | None,
    dh: Tensor | None,
    x_out: Tensor,
    y: Tensor,
    y_bias: Tensor | None,
    gate: Tensor,
    scale: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dy, dgate, dshift, dscale, dy_bias); dx is the whole gradient of x', and of x. A missing dx_out or dh counts
    as zero, a missing y_bias has an empty gradient.
    """
    dx, dy = rows.empty(x_out.shape, x_out.dtype, x_out.device), rows.empty(y.shape, y.dtype, y.device)
    groups, D = gate.shape
    if y.numel() == 0:
        bias = y.new_empty(0) if y_bias is None else torch.zeros_like(y_bias)
        none = tuple(torch.zeros_like(gate) for _ in range(3))
        return rows.rounded(dx, x_out.dtype), rows.rounded(dy, y.dtype), *none, bias
    c = config("gate_residual_norm_modulate_bwd", x_out)
    given = (x_out if dx_out is None else dx_out, x_out if dh is None else dh, x_out, y)
    tensors, leads, n, s = rows.merge_rows(*given)
    per_group, programs = rows.split_rows(y.numel() // D, groups, c, y.device, rows.PARTIAL_ROWS)
    slots = 3 + (y_bias is not None)
    partials = torch.empty((groups, programs, slots, D), dtype=torch.float32, device=y.device)
    with rows.guard(y):
        gate_residual_norm_modulate_bwd_kernel[(groups * programs,)](
            *tensors, gate if y_bias is None else y_bias, gate, scale, dx, dy, partials,
            *n, *s[0], *s[1], *s[2], *s[3], gate.stride(0), scale.stride(0), per_group, programs, eps,
            HAS_DX=dx_out is not None, HAS_DH=dh is not None, HAS_BIAS=y_bias is not None, LEADS=leads,
            **rows.pieces(D, c.warps, *tensors), STAGES=c.stages, num_warps=c.warps, enable_fp_fusion=True,
        )  # fmt: skip
    dgate, dshift, dscale, *dy_bias = rows.sum_partials(partials, gate.dtype)
    dx, dy = rows.rounded(dx, x_out.dtype), rows.rounded(dy, y.dtype)
    return dx, dy, dgate, dshift, dscale, dy_bias[0] if dy_bias else y.new_empty(0)


def why_not(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    y_bias: Tensor | None = None,
    pos: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> str | None:
    return rows.why_not_rows(x, y, gate, shift, scale, y_bias, pos)
