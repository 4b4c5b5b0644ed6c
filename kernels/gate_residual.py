"""gate_residual on Triton: x + gate * y, and dy, dgate in one pass over dout and y."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.rows import load_row, row_offset, store_row, zero_row


@triton.jit(do_not_specialize=["n_1", "n_2", "per_group", "programs"])
def gate_residual_fwd_kernel(
    x_ptr, y_ptr, gate_ptr, out_ptr, n_1, n_2, s_x0, s_x1, s_x2, s_y0, s_y1, s_y2, s_gate, per_group, programs,
    LEADS: tl.constexpr, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    i_g = (tl.program_id(0) // programs).to(tl.int64)
    i_first = tl.program_id(0) % programs
    b_gate0, b_gate1 = load_row(gate_ptr + i_g * s_gate, D, BLOCK_0, BLOCK_1)
    for i_row in tl.range(i_first, per_group, programs, num_stages=STAGES):
        i_out = i_g * per_group + i_row
        p_x = x_ptr + row_offset(i_out, n_1, n_2, s_x0, s_x1, s_x2, LEADS)
        p_y = y_ptr + row_offset(i_out, n_1, n_2, s_y0, s_y1, s_y2, LEADS)
        b_x0, b_x1 = load_row(p_x, D, BLOCK_0, BLOCK_1)
        b_y0, b_y1 = load_row(p_y, D, BLOCK_0, BLOCK_1)
        b_out0, b_out1 = b_x0 + b_gate0 * b_y0, b_x1 + b_gate1 * b_y1
        store_row(out_ptr + i_out * D, b_out0, b_out1, D, BLOCK_0, BLOCK_1)


@triton.jit(do_not_specialize=["n_1", "n_2", "per_group", "programs"])
def gate_residual_bwd_kernel(
    dout_ptr, y_ptr, gate_ptr, dy_ptr, partial_ptr, n_1, n_2, s_dout0, s_dout1, s_dout2, s_y0, s_y1, s_y2, s_gate,
    per_group, programs,
    LEADS: tl.constexpr, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes dy, and to partial (G, P, 1, D) this program's share of dgate."""
    i_g = (tl.program_id(0) // programs).to(tl.int64)
    i_first = tl.program_id(0) % programs
    b_gate0, b_gate1 = load_row(gate_ptr + i_g * s_gate, D, BLOCK_0, BLOCK_1)
    b_dgate0, b_dgate1 = zero_row(BLOCK_0, BLOCK_1)
    for i_row in tl.range(i_first, per_group, programs, num_stages=STAGES):
        i_out = i_g * per_group + i_row
        p_dout = dout_ptr + row_offset(i_out, n_1, n_2, s_dout0, s_dout1, s_dout2, LEADS)
        p_y = y_ptr + row_offset(i_out, n_1, n_2, s_y0, s_y1, s_y2, LEADS)
        b_dout0, b_dout1 = load_row(p_dout, D, BLOCK_0, BLOCK_1)
        b_y0, b_y1 = load_row(p_y, D, BLOCK_0, BLOCK_1)
        b_dgate0 += b_dout0 * b_y0
        b_dgate1 += b_dout1 * b_y1
        store_row(dy_ptr + i_out * D, b_dout0 * b_gate0, b_dout1 * b_gate1, D, BLOCK_0, BLOCK_1)
    p_partial = partial_ptr + tl.program_id(0).to(tl.int64) * D
    store_row(p_partial, b_dgate0, b_dgate1, D, BLOCK_0, BLOCK_1)


def config(kernel: str, x: Tensor) -> tiles.RowsConfig:
    D = x.shape[-1]
    default = tiles.rows_default(D, 7)
    return tiles.choose(kernel, f"D{D}-{rows.NAMES[x.dtype]}", default, x.device)


def gate_residual_fwd(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y in x's dtype."""
    out = rows.empty(x.shape, x.dtype, x.device)
    if x.numel() == 0:
        return rows.rounded(out, x.dtype)
    c = config("gate_residual_fwd", x)
    groups, D = gate.shape
    (xs, ys), leads, n, (s_x, s_y) = rows.merge_rows(x, y)
    per_group, programs = rows.split_rows(x.numel() // D, groups, c, x.device)
    with rows.guard(x):
        gate_residual_fwd_kernel[(groups * programs,)](
            xs, ys, gate, out, *n, *s_x, *s_y, gate.stride(0), per_group, programs,
            LEADS=leads, **rows.pieces(D, c.warps, xs, ys), STAGES=c.stages, num_warps=c.warps,
            enable_fp_fusion=True,
        )  # fmt: skip
    return rows.rounded(out, x.dtype)


def gate_residual_bwd(dout: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """(dy, dgate) in the dtypes of y and gate; dx is dout itself."""
    dy = rows.empty(y.shape, y.dtype, y.device)
    groups, D = gate.shape
    if y.numel() == 0:
        return rows.rounded(dy, y.dtype), torch.zeros_like(gate)
    c = config("gate_residual_bwd", y)
    (douts, ys), leads, n, (s_dout, s_y) = rows.merge_rows(dout, y)
    per_group, programs = rows.split_rows(y.numel() // D, groups, c, y.device, rows.PARTIAL_ROWS)
    partials = torch.empty((groups, programs, 1, D), dtype=torch.float32, device=y.device)
    with rows.guard(y):
        gate_residual_bwd_kernel[(groups * programs,)](
            douts, ys, gate, dy, partials, *n, *s_dout, *s_y, gate.stride(0), per_group, programs,
            LEADS=leads, **rows.pieces(D, c.warps, douts, ys), STAGES=c.stages, num_warps=c.warps,
            enable_fp_fusion=True,
        )  # fmt: skip
    return rows.rounded(dy, y.dtype), rows.sum_partials(partials, gate.dtype)[0]


def why_not(x: Tensor, y: Tensor, gate: Tensor) -> str | None:
    return rows.why_not_rows(x, y, gate)
