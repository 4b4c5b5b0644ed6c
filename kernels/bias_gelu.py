"""bias_gelu on Triton: tanh-GELU(u + b), which training applies to fc1's result, and du, db in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles
from latte_fast.kernels.rows import row_offset


@triton.jit
def exponential(b_v):
    """exp(-2z) with z = sqrt(2/pi) (v + 0.044715 v^3): gelu(v) = v / (1 + exp(-2z)), accurate in both tails."""
    return tl.exp2(b_v * (-2.302208198144325 - 0.10294323958002349 * b_v * b_v))


@triton.jit(do_not_specialize=["n_1", "n_2", "rows_", "programs"])
def bias_gelu_fwd_kernel(
    u_ptr, b_ptr, a_ptr, n_1, n_2, s_u0, s_u1, s_u2, rows_, programs,
    LEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    i_d = tl.program_id(0) % tl.cdiv(D, BLOCK_D)
    i_first = (tl.program_id(0) // tl.cdiv(D, BLOCK_D)) * BLOCK_R
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_b = tl.load(b_ptr + o_d, mask=m_d, other=0.0).to(tl.float32)
    for i_row in tl.range(i_first, rows_, programs * BLOCK_R, num_stages=STAGES):
        o_row = (i_row + tl.arange(0, BLOCK_R)).to(tl.int64)
        m_tile = (o_row < rows_)[:, None] & m_d[None, :]
        p_u = u_ptr + row_offset(o_row, n_1, n_2, s_u0, s_u1, s_u2, LEADS)[:, None] + o_d[None, :]
        b_v = tl.load(p_u, mask=m_tile, other=0.0).to(tl.float32) + b_b[None, :]
        b_a = b_v / (1 + exponential(b_v))
        p_a = a_ptr + o_row[:, None] * D + o_d[None, :]
        tl.store(p_a, b_a.to(a_ptr.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["n_1", "n_2", "rows_", "programs"])
def bias_gelu_bwd_kernel(
    da_ptr, u_ptr, b_ptr, du_ptr, partial_ptr, n_1, n_2, s_da0, s_da1, s_da2, s_u0, s_u1, s_u2, rows_, programs,
    LEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Writes du, and to partial (1, P, 1, D) this program's share of db."""
    i_d = tl.program_id(0) % tl.cdiv(D, BLOCK_D)
    i_slot = tl.program_id(0) // tl.cdiv(D, BLOCK_D)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_b = tl.load(b_ptr + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_db = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for i_row in tl.range(i_slot * BLOCK_R, rows_, programs * BLOCK_R, num_stages=STAGES):
        o_row = (i_row + tl.arange(0, BLOCK_R)).to(tl.int64)
        m_tile = (o_row < rows_)[:, None] & m_d[None, :]
        p_u = u_ptr + row_offset(o_row, n_1, n_2, s_u0, s_u1, s_u2, LEADS)[:, None] + o_d[None, :]
        p_da = da_ptr + row_offset(o_row, n_1, n_2, s_da0, s_da1, s_da2, LEADS)[:, None] + o_d[None, :]
        b_v = tl.load(p_u, mask=m_tile, other=0.0).to(tl.float32) + b_b[None, :]
        b_da = tl.load(p_da, mask=m_tile, other=0.0).to(tl.float32)
        # beyond +-10 the derivative is 0 or 1 already, and further out the exponential overflows
        all_nan: tl.constexpr = tl.PropagateNan.ALL
        b_v = tl.minimum(tl.maximum(b_v, -10.0, propagate_nan=all_nan), 10.0, propagate_nan=all_nan)
        b_exp = exponential(b_v)
        b_gate = 1 / (1 + b_exp)
        b_slope = 1.5957691216057308 + 0.2140644488 * b_v * b_v  # d(2z)/dv
        b_du = b_da * b_gate * (1 + b_v * (b_exp * b_gate) * b_slope)
        b_db += b_du
        p_du = du_ptr + o_row[:, None] * D + o_d[None, :]
        tl.store(p_du, b_du.to(du_ptr.dtype.element_ty), mask=m_tile)
    tl.store(partial_ptr + i_slot.to(tl.int64) * D + o_d, tl.sum(b_db, 0), mask=m_d)


def block_d(D: int) -> int:
    """Columns a program takes: 1024, or 512 where that divides D better (4608 is 9 x 512)."""
    return min(tiles.power_of_2(D), 512 if D % 1024 else 1024)


def config(kernel: str, u: Tensor) -> tiles.TileConfig:
    D = u.shape[-1]
    per_sm = 64 if kernel.endswith("fwd") else 7
    default = tiles.TileConfig(block_r=max(1, 2048 // block_d(D)), warps=4, stages=1, programs_per_sm=per_sm)
    return tiles.choose(kernel, f"D{D}-{rows.NAMES[u.dtype]}", default, u.device)


def split(count: int, D: int, c: tiles.TileConfig, device: torch.device) -> tuple[int, int]:
    """(programs over rows, programs over columns)."""
    columns = tiles.ceil_div(D, block_d(D))
    budget = c.programs_per_sm * tiles.gpu_of(device).multiprocessors // columns
    return max(1, min(tiles.ceil_div(count, c.block_r), budget)), columns


def bias_gelu_fwd(u: Tensor, b: Tensor) -> Tensor:
    """tanh-GELU(u + b) in u's dtype; u (..., M), b (M,)."""
    a = rows.empty(u.shape, u.dtype, u.device)
    if u.numel() == 0:
        return rows.rounded(a, u.dtype)
    c = config("bias_gelu_fwd", u)
    D = u.shape[-1]
    (us,), leads, n, (s_u,) = rows.merge_rows(u)
    programs, columns = split(u.numel() // D, D, c, u.device)
    with rows.guard(u):
        bias_gelu_fwd_kernel[(programs * columns,)](
            us, b, a, *n, *s_u, u.numel() // D, programs,
            LEADS=leads, D=D, BLOCK_D=block_d(D), BLOCK_R=c.block_r, STAGES=c.stages, num_warps=c.warps,
            enable_fp_fusion=True,
        )  # fmt: skip
    return rows.rounded(a, u.dtype)


def bias_gelu_bwd(da: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(du, db) in the dtypes of u and b."""
    du = rows.empty(u.shape, u.dtype, u.device)
    if u.numel() == 0:
        return rows.rounded(du, u.dtype), torch.zeros_like(b)
    c = config("bias_gelu_bwd", u)
    D = u.shape[-1]
    (das, us), leads, n, (s_da, s_u) = rows.merge_rows(da, u)
    programs, columns = split(u.numel() // D, D, c, u.device)
    partials = torch.empty((1, programs, 1, D), dtype=torch.float32, device=u.device)
    with rows.guard(u):
        bias_gelu_bwd_kernel[(programs * columns,)](
            das, us, b, du, partials, *n, *s_da, *s_u, u.numel() // D, programs,
            LEADS=leads, D=D, BLOCK_D=block_d(D), BLOCK_R=c.block_r, STAGES=c.stages, num_warps=c.warps,
            enable_fp_fusion=True,
        )  # fmt: skip
    return rows.rounded(du, u.dtype), rows.sum_partials(partials, b.dtype)[0].reshape(b.shape)


def why_not(u: Tensor, b: Tensor) -> str | None:
    for t in (u, b):
        if t.dtype not in rows.NAMES:
            return f"the Triton kernels take fp32, bf16 and fp16, got {t.dtype}"
    if u.numel() // u.shape[-1] >= 2**31:
        return f"the Triton kernels count rows in 32 bits, got {u.numel() // u.shape[-1]}"
    return None
