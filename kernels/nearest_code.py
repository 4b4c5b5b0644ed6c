"""nearest_code on Triton: a block of codes at a time, the best of which is kept, and no matrix of distances."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles


@triton.jit(do_not_specialize=["n_rows", "n_codes"])
def nearest_code_fwd_kernel(
    z_ptr, e_ptr, half_ptr, out_ptr, n_rows, n_codes,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The code with the largest z . e - |e|^2 / 2, the first of equals."""
    o_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < n_rows
    b_best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_code = tl.zeros([BLOCK_M], dtype=tl.int32)
    for i_n in range(0, n_codes, BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = o_n < n_codes
        b_p = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for i_d in range(0, D, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            m_d = o_d < D
            b_z = tl.load(z_ptr + o_m[:, None] * D + o_d[None, :], mask=m_m[:, None] & m_d[None, :], other=0.0)
            p_e = e_ptr + o_n.to(tl.int64)[None, :] * D + o_d[:, None]
            b_e = tl.load(p_e, mask=m_n[None, :] & m_d[:, None], other=0.0)
            b_p += tl.dot(b_z, b_e, input_precision="ieee")
        b_half = tl.load(half_ptr + o_n, mask=m_n, other=float("inf"))
        b_p -= b_half[None, :]
        b_most = tl.max(b_p, 1)
        # the least number among the largest
        b_at = tl.min(tl.where(b_p == b_most[:, None], o_n[None, :], n_codes), 1)
        better = b_most > b_best
        b_code = tl.where(better, b_at, b_code)
        b_best = tl.where(better, b_most, b_best)
    tl.store(out_ptr + o_m, b_code.to(tl.int64), mask=m_m)


def nearest_code_fwd(z: Tensor, codes: Tensor) -> Tensor:
    """z (M, D), codes (K, D), both fp32 -> (M,) int64."""
    M, D = z.shape
    out = torch.empty(M, dtype=torch.int64, device=z.device)
    if M:
        z, codes = z.contiguous(), codes.contiguous()
        block_d = max(16, min(64, tiles.power_of_2(D)))
        default = tiles.FlashConfig(block_m=64, block_n=64, warps=4, stages=2)
        c = tiles.choose("nearest_code_fwd", f"D{D}-fp32", default, z.device)
        assert isinstance(c, tiles.FlashConfig)
        half = codes.square().sum(1) / 2
        with rows.guard(z):
            nearest_code_fwd_kernel[(tiles.ceil_div(M, c.block_m),)](
                z, codes, half, out, M, len(codes),
                D=D, BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_D=block_d, num_warps=c.warps, num_stages=c.stages,
            )  # fmt: skip
    return out


def why_not(z: Tensor, codes: Tensor) -> str | None:
    if z.dtype != torch.float32:
        return f"the Triton kernel takes fp32, got {z.dtype}"
    return None
