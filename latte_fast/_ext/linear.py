"""Linear layers for inference on the CPU: results in reused buffers, biases left to the kernel that reads the result.

A result above 32 MB is mapped afresh by the allocator on each call and pays for its page faults (XL/2 fc1: 67 ms
against 42 into a reused buffer, bf16, two cores of a Xeon with AMX, 2026-11). No weight is cached, none can be stale.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.axis_attention import Rope, axis_attention_fwd
from latte_fast._ext.bias_gelu import bias_gelu_fwd

KEPT = 2  # buffers that stay for the next call
_free: list[Tensor] = []
_lock = threading.Lock()


@contextlib.contextmanager
def borrowed(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """An uninitialised tensor for the length of a `with`: a buffer nobody else holds, kept for the next call."""
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


def rows_at_once(dtype: torch.dtype) -> int:
    """Rows multiplied at a time: the results of few stay in the caches, many share the packing of the weights."""
    # On AMX 256 a core: the MLP of B/2 in 54 ms, all rows at once in 69 (bf16, two cores of a Xeon, 2026-11). Slower
    # products gain from more rows: 2048 instead of 512 take 1-3 % off the MLP and off attention with its qkv in
    # bf16, 4-12 % in fp32, while all 4096 give some of it back (two cores of an EPYC without AMX, 2026-11-21).
    tiles = dtype == torch.bfloat16 and _ext.load().isa() == "amx"
    return max(512 if tiles else 2048, 256 * torch.get_num_threads())


def mlp(h: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    """gelu(h w1^T + b1) w2^T, some rows at a time; h (..., D) -> (..., D)."""
    rows = h.reshape(-1, h.shape[-1])
    out = torch.empty((len(rows), w2.shape[0]), dtype=h.dtype)
    step = rows_at_once(h.dtype)
    with borrowed((min(step, len(rows)), w1.shape[0]), h.dtype) as u:
        for part, to in zip(rows.split(step), out.split(step), strict=True):
            hidden = linear(part, w1, out=u[: len(part)])
            linear(bias_gelu_fwd(hidden, b1, out=hidden), w2, out=to)
    return out.view(*h.shape[:-1], w2.shape[0])


def attention(
    h: Tensor, w: Tensor, b: Tensor | None, heads: int, axis: str, rope: Rope | None = None, scale: float | None = None
) -> Tensor:
    """axis_attention of h w^T + b; h (B, F, N, D) -> (B, F, N, H*K)."""
    rows = h.reshape(-1, h.shape[-1])

    def project(part: slice, out: Tensor) -> None:
        linear(rows[part], w, out=out)

    return attention_in_parts(h.shape[:3], h.dtype, project, w.shape[0], b, heads, axis, rope, scale)


def attention_in_parts(
    shape: Sequence[int],
    dtype: torch.dtype,
    project: Callable[[slice, Tensor], None],
    columns: int,
    b: Tensor | None,
    heads: int,
    axis: str,
    rope: Rope | None = None,
    scale: float | None = None,
) -> Tensor:
    """axis_attention of what `project` writes for a part of all rows, (rows, columns), plus b -> (B, F, N, H*K).

    The packed qkv lies in one borrowed buffer: all of it on the time axis, a few frames at a time on the space axis.
    """
    batch, frames, patches = shape
    width = columns // (3 * heads)
    out = torch.empty((batch, frames, patches, heads * width), dtype=dtype)
    if not out.numel():
        return out
    step, whole = batch * frames, (batch, frames, patches)
    if axis == "space":
        step = min(step, max(1, rows_at_once(dtype) // patches))
        whole = (1, -1, patches)
    results = out.view(batch * frames, patches, -1)
    scale = width**-0.5 if scale is None else scale
    with borrowed((step * patches, columns), dtype) as buffer:
        for i, to in enumerate(results.split(step)):
            part = buffer[: len(to) * patches]
            project(slice(i * step * patches, i * step * patches + len(part)), part)
            q, k, v = part.view(*whole, 3, heads, width).unbind(3)
            axis_attention_fwd(q, k, v, axis, rope, scale, None, False, b, to.view(*whole, heads * width))
    return out
