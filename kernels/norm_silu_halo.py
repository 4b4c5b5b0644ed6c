"""norm_silu_halo on Triton: scale, shift, SiLU and the repeated edge in one pass; channels lie side by side."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles


@triton.jit
def sigmoid(b_v):
    """1 / (1 + exp(-v)), which is right in both tails; the approximate quotient would be off by two bits more."""
    return tl.div_rn(1.0, 1 + tl.exp2(b_v * -1.4426950408889634))


@triton.jit
def split_pixel(o, n_t, n_h, n_w):
    """The clip, time, row and column of a pixel's number."""
    o_w, rest = o % n_w, o // n_w
    o_h, rest = rest % n_h, rest // n_h
    return rest // n_t, rest % n_t, o_h, o_w


@triton.jit
def first_place(i, BEFORE: tl.constexpr):
    """The first place along a padded axis that shows element i."""
    return tl.where(i == 0, 0, i + BEFORE)


@triton.jit
def end_place(i, n, BEFORE: tl.constexpr, AFTER: tl.constexpr):
    """One beyond the last."""
    return tl.where(i == n - 1, n + BEFORE + AFTER, i + BEFORE + 1)


@triton.jit(do_not_specialize=["n_t", "n_h", "n_w", "pixels"])
def norm_silu_halo_fwd_kernel(
    x_ptr, scale_ptr, shift_ptr, out_ptr, n_t, n_h, n_w, pixels,
    GROUPED: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    T_0: tl.constexpr, T_1: tl.constexpr, H_0: tl.constexpr, H_1: tl.constexpr, W_0: tl.constexpr, W_1: tl.constexpr,
):  # fmt: skip
    i_c = tl.program_id(0) % tl.cdiv(C, BLOCK_C)
    o_r = (tl.program_id(0) // tl.cdiv(C, BLOCK_C)).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (o_r < pixels)[:, None] & (o_c < C)[None, :]
    i_n, i_t, i_h, i_w = split_pixel(o_r, n_t + T_0 + T_1, n_h + H_0 + H_1, n_w + W_0 + W_1)
    i_t = tl.minimum(tl.maximum(i_t - T_0, 0), n_t - 1)
    i_h = tl.minimum(tl.maximum(i_h - H_0, 0), n_h - 1)
    i_w = tl.minimum(tl.maximum(i_w - W_0, 0), n_w - 1)
    o_x = (((i_n * n_t + i_t) * n_h + i_h) * n_w + i_w) * C
    o_g = i_n * C if GROUPED else i_n * 0
    p_g = o_g[:, None] + o_c[None, :]
    b_x = tl.load(x_ptr + o_x[:, None] + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
    b_scale, b_shift = tl.load(scale_ptr + p_g, mask=mask, other=0.0), tl.load(shift_ptr + p_g, mask=mask, other=0.0)
    b_v = b_x * b_scale + b_shift
    b_out = b_v * sigmoid(b_v)
    tl.store(out_ptr + o_r[:, None] * C + o_c[None, :], b_out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_t", "n_h", "n_w", "pixels"])
def norm_silu_halo_bwd_kernel(
    dout_ptr, x_ptr, scale_ptr, shift_ptr, dx_ptr, partial_ptr, n_t, n_h, n_w, pixels,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    T_0: tl.constexpr, T_1: tl.constexpr, H_0: tl.constexpr, H_1: tl.constexpr, W_0: tl.constexpr, W_1: tl.constexpr,
):  # fmt: skip
    """Programs (columns, slots, groups): `pixels` of each group; partial (groups, slots, 2, C) of dscale and dshift."""
    i_slot, slots, i_g = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_scale = tl.load(scale_ptr + i_g.to(tl.int64) * C + o_c, mask=m_c, other=0.0)[None, :]
    b_shift = tl.load(shift_ptr + i_g.to(tl.int64) * C + o_c, mask=m_c, other=0.0)[None, :]
    b_dscale = tl.zeros([BLOCK_C], dtype=tl.float32)
    b_dshift = tl.zeros([BLOCK_C], dtype=tl.float32)
    for i_r in range(i_slot * BLOCK_R, pixels, slots * BLOCK_R):
        o_in = (i_r + tl.arange(0, BLOCK_R)).to(tl.int64)
        m_r = o_in < pixels
        o_r = i_g.to(tl.int64) * pixels + o_in
        mask = m_r[:, None] & m_c[None, :]
        i_n, i_t, i_h, i_w = split_pixel(o_r, n_t, n_h, n_w)
        b_d = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
        e_t = end_place(i_t, n_t, T_0, T_1)
        e_h = end_place(i_h, n_h, H_0, H_1)
        e_w = end_place(i_w, n_w, W_0, W_1)
        f_t, f_h, f_w = first_place(i_t, T_0), first_place(i_h, H_0), first_place(i_w, W_0)
        # most blocks have no pixel at an edge, and one place for each
        most = tl.max(tl.where(m_r, (e_t - f_t) * (e_h - f_h) * (e_w - f_w), 1), 0)
        places = tl.where(most > 1, (1 + T_0 + T_1) * (1 + H_0 + H_1) * (1 + W_0 + W_1), 1)
        for k in range(0, places):
            o_w = f_w + k % (1 + W_0 + W_1)
            o_h = f_h + k // (1 + W_0 + W_1) % (1 + H_0 + H_1)
            o_t = f_t + k // ((1 + W_0 + W_1) * (1 + H_0 + H_1))
            m_k = (o_t < e_t) & (o_h < e_h) & (o_w < e_w)
            row = (i_n * (n_t + T_0 + T_1) + o_t) * (n_h + H_0 + H_1) + o_h
            p_d = dout_ptr + ((row * (n_w + W_0 + W_1) + o_w) * C)[:, None] + o_c[None, :]
            b_d += tl.load(p_d, mask=mask & m_k[:, None], other=0.0).to(tl.float32)
        b_x = tl.load(x_ptr + o_r[:, None] * C + o_c[None, :], mask=mask, other=0.0).to(tl.float32)
        b_v = b_x * b_scale + b_shift
        b_s = sigmoid(b_v)
        # 1 - sigmoid(v) is sigmoid(-v), which does not cancel
        b_dv = b_d * b_s * (1 + b_v * sigmoid(-b_v))
        b_dv = tl.where(mask, b_dv, 0.0)
        b_dscale += tl.sum(b_dv * b_x, 0)
        b_dshift += tl.sum(b_dv, 0)
        p_dx = dx_ptr + o_r[:, None] * C + o_c[None, :]
        tl.store(p_dx, (b_dv * b_scale).to(dx_ptr.dtype.element_ty), mask=mask)
    p_partial = partial_ptr + (i_g * slots + i_slot).to(tl.int64) * 2 * C + o_c
    tl.store(p_partial, b_dscale, mask=m_c)
    tl.store(p_partial + C, b_dshift, mask=m_c)


def block_c(C: int) -> int:
    return min(128, tiles.power_of_2(C))


def config(kernel: str, x: Tensor) -> tiles.TileConfig:
    C = x.shape[1]
    default = tiles.TileConfig(block_r=max(1, 2048 // block_c(C)), warps=4, stages=1, programs_per_sm=8)
    chosen = tiles.choose(kernel, f"C{C}-{rows.NAMES[x.dtype]}", default, x.device)
    assert isinstance(chosen, tiles.TileConfig)
    return chosen


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def norm_silu_halo_fwd(x: Tensor, scale: Tensor, shift: Tensor, pads: Sequence[int]) -> Tensor:
    """x (B, C, T, H, W), scale and shift (1 or B, C) in fp32; the result lies channels last."""
    B, C, *size = x.shape
    padded = [n + pads[2 * i] + pads[2 * i + 1] for i, n in enumerate(size)]
    out = rows.empty((B, *padded, C), x.dtype, x.device)
    pixels = out.numel() // C
    if pixels:
        c = config("norm_silu_halo_fwd", x)
        grid = (tiles.ceil_div(pixels, c.block_r) * tiles.ceil_div(C, block_c(C)),)
        t_0, t_1, h_0, h_1, w_0, w_1 = pads
        with rows.guard(x):
            norm_silu_halo_fwd_kernel[grid](
                channels_last(x), scale, shift, out, *size, pixels,
                GROUPED=scale.shape[0] > 1, C=C, BLOCK_C=block_c(C), BLOCK_R=c.block_r,
                T_0=t_0, T_1=t_1, H_0=h_0, H_1=h_1, W_0=w_0, W_1=w_1, num_warps=c.warps,
            )  # fmt: skip
    return rows.rounded(out, x.dtype).permute(0, 4, 1, 2, 3)


def norm_silu_halo_bwd(
    dout: Tensor, x: Tensor, scale: Tensor, shift: Tensor, pads: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dscale, dshift)."""
    B, C, *size = x.shape
    dx = rows.empty((B, *size, C), x.dtype, x.device)
    if not x.numel():
        return rows.rounded(dx, x.dtype).permute(0, 4, 1, 2, 3), torch.zeros_like(scale), torch.zeros_like(shift)
    c, groups = config("norm_silu_halo_bwd", x), scale.shape[0]
    pixels = x.numel() // C // groups
    columns = tiles.ceil_div(C, block_c(C))
    budget = max(1, c.programs_per_sm * tiles.gpu_of(x.device).multiprocessors // (columns * groups))
    slots = min(tiles.ceil_div(pixels, c.block_r), budget)
    partial = torch.empty((groups, slots, 2, C), dtype=torch.float32, device=x.device)
    t_0, t_1, h_0, h_1, w_0, w_1 = pads
    with rows.guard(x):
        norm_silu_halo_bwd_kernel[(columns, slots, groups)](
            channels_last(dout), channels_last(x), scale, shift, dx, partial, *size, pixels,
            C=C, BLOCK_C=block_c(C), BLOCK_R=c.block_r,
            T_0=t_0, T_1=t_1, H_0=h_0, H_1=h_1, W_0=w_0, W_1=w_1, num_warps=c.warps,
        )  # fmt: skip
    dscale, dshift = partial.sum(1).unbind(1)
    return rows.rounded(dx, x.dtype).permute(0, 4, 1, 2, 3), dscale.contiguous(), dshift.contiguous()


def why_not(x: Tensor, scale: Tensor, shift: Tensor, pads: Sequence[int]) -> str | None:
    if x.dtype not in rows.NAMES:
        return f"the Triton kernels take fp32, bf16 and fp16, got {x.dtype}"
    if max(pads) > 3:
        return f"the Triton kernels repeat an edge up to 3 times, got {max(pads)}"
    return None
