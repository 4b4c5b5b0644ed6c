"""Launches the C++ kernel of nearest_code."""

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import CODES


def why_not(z: Tensor, codes: Tensor) -> str | None:
    if z.dtype not in (torch.float32, torch.float64):
        return f"the C++ kernel needs fp32 or fp64, got {z.dtype}"
    return None


def nearest_code_fwd(z: Tensor, codes: Tensor) -> Tensor:
    """z (M, D), codes (K, D) -> (M,) int64."""
    out = torch.empty(len(z), dtype=torch.int64)
    if len(z):
        z, codes = z.contiguous(), codes.contiguous()
        pointers = z.data_ptr(), codes.data_ptr(), out.data_ptr()
        _ext.load().nearest_code(*pointers, CODES[z.dtype], *z.shape[:1], *codes.shape, torch.get_num_threads())
    return out
