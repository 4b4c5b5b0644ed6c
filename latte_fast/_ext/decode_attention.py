"""Launches the C++ kernel of decode_attention."""

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import CODES


def why_not(*args: object) -> str | None:
    return None


def decode_attention_fwd(qkv: Tensor, cache: Tensor, position: Tensor, scale: float) -> Tensor:
    """qkv (B, 3, H, K), cache (2, B, H, L, K), position (1,) -> (B, H*K)."""
    batch, _, heads, width = qkv.shape
    out = torch.empty((batch, heads * width), dtype=qkv.dtype)
    if batch:
        pointers = qkv.data_ptr(), cache.data_ptr(), out.data_ptr(), position.data_ptr()
        sizes = CODES[qkv.dtype], batch, heads, width, cache.shape[3]
        _ext.load().decode_attention(
            pointers, qkv.stride()[:3], cache.stride()[:4], sizes, scale, torch.get_num_threads()
        )
    return out
