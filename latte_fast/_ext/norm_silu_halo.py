"""Launches the C++ kernels of norm_silu_halo."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import CODES


def why_not(x: Tensor, scale: Tensor, shift: Tensor, pads: Sequence[int]) -> str | None:
    if x.dtype not in CODES:
        return f"the C++ kernels need fp32, bf16, fp16 or fp64, got {x.dtype}"
    return None


def norm_silu_halo_fwd(x: Tensor, scale: Tensor, shift: Tensor, pads: Sequence[int]) -> Tensor:
    """x (B, C, T, H, W), scale and shift (1 or B, C) in fp32 or float64; the result lies channels last."""
    batch, channels, *size = x.shape
    padded = [n + pads[2 * i] + pads[2 * i + 1] for i, n in enumerate(size)]
    out = torch.empty((batch, channels, *padded), dtype=x.dtype, memory_format=torch.channels_last_3d)
    if x.numel():
        x = x.contiguous(memory_format=torch.channels_last_3d)
        pointers = (x.data_ptr(), scale.data_ptr(), shift.data_ptr(), out.data_ptr(), 0, 0, 0, 0)
        _ext.load().norm_silu_halo_fwd(pointers, *_sizes(x, scale, pads))
    return out


def norm_silu_halo_bwd(
    dout: Tensor, x: Tensor, scale: Tensor, shift: Tensor, pads: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous(memory_format=torch.channels_last_3d)
    dout = dout.to(x.dtype).contiguous(memory_format=torch.channels_last_3d)
    dx = torch.empty_like(x, memory_format=torch.channels_last_3d)
    if not x.numel():
        return dx, torch.zeros_like(scale), torch.zeros_like(shift)
    dscale, dshift = torch.empty_like(scale), torch.empty_like(shift)
    tensors = (dout, dx, dscale, dshift)
    pointers = (x.data_ptr(), scale.data_ptr(), shift.data_ptr(), 0, *(t.data_ptr() for t in tensors))
    _ext.load().norm_silu_halo_bwd(pointers, *_sizes(x, scale, pads))
    return dx, dscale, dshift


def _sizes(x: Tensor, scale: Tensor, pads: Sequence[int]) -> tuple[tuple, tuple, int]:
    sizes = CODES[x.dtype], x.shape[0], x.shape[1], scale.shape[0]
    return sizes, (tuple(x.shape[2:]), tuple(pads[::2]), tuple(pads[1::2])), torch.get_num_threads()
