"""Linear layers for inference on the CPU: results in reused buffers, biases left to the kernel that reads the result.

A result above 32 MB is mapped afresh by the allocator on each call and pays for its page faults (XL/2 fc1: 67 ms against
42 into a reused buffer, bf16, two cores of a Xeon with AMX). Nothing here caches a weight, so nothing can be stale.
"""

import contextlib
import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from latte_fast._ext.axis_attention import Rope, axis_attention_fwd
from latte_fast._ext.bias_gelu import bias_gelu_fwd

KEPT = 2  # buffers that stay for the next call
_free: list[Tensor] = []
_lock = threading.Lock()


@contextlib.contextmanager
def borrowed(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """An uninitialised tensor for the length of a `with`: a buffer nobody else holds, kept afterwards for the next call."""
    size = math.prod(shape) * dtype.itemsize
    with _lock:
        fitting = [i for i, b in enumerate(_free) if size <= b.numel() <= 2 * size]
        buffer = _free.pop(fitting[-1]) if fitting else None
    if buffer is None:
        with torch.inference_mode(False):  # or it could not be written outside of inference mode
            buffer = torch.empty(size, dtype=torch.uint8)
    yield buffer[:size].view(dtype).view(shape)
    with _lock:
        _free.append(buffer)
        del _free[:-KEPT]


def release_buffers() -> None:
    """Gives the kept buffers back to the allocator."""
    with _lock:
        _free.clear()


def linear(x: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x w^T for x (..., D), w (M, D); out (rows, M) may be borrowed."""
    rows = x.reshape(-1, x.shape[-1])
    return torch.mm(rows, weight.t(), out=out).view(*x.shape[:-1], weight.shape[0])


def mlp(h: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    """gelu(h w1^T + b1) w2^T, the hidden layer in one borrowed buffer; h (..., D) -> (..., D)."""
    with borrowed((h.numel() // h.shape[-1], w1.shape[0]), h.dtype) as u:
        linear(h, w1, out=u)
        return linear(bias_gelu_fwd(u, b1, out=u), w2).view(*h.shape[:-1], w2.shape[0])


def attention(
    h: Tensor, w: Tensor, b: Tensor | None, heads: int, axis: str, rope: Rope | None = None, scale: float | None = None
) -> Tensor:
    """axis_attention of h w^T + b, the packed qkv in one borrowed buffer; h (B, F, N, D) -> (B, F, N, H*K)."""
    with borrowed((h.numel() // h.shape[-1], w.shape[0]), h.dtype) as out:
        width = w.shape[0] // (3 * heads)
        q, k, v = linear(h, w, out=out).view(*h.shape[:-1], 3, heads, width).unbind(3)
        return axis_attention_fwd(q, k, v, axis, rope, width**-0.5 if scale is None else scale, None, False, b)[0]
