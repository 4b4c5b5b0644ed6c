"""Shapes on which a library is faster than our kernels, by this GPU's table in kernels/configs/."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latte_fast.kernels import tiles

# backends of axis_attention that the table may name; `latte-fast tune` times each that serves the shape
CONTENDERS = ("triton", "cudnn", "sdpa", "flash_attn")


def attention_key(q: Tensor, k: Tensor, axis: str, grad: bool) -> str:
    """A call's name in the table: `axis_attention/space-1024x1024-K72-bfloat16-grad`."""
    queries, keys = (q.shape[2], k.shape[2]) if axis == "space" else (q.shape[1], k.shape[1])
    return f"axis_attention/{axis}-{queries}x{keys}-K{q.shape[-1]}-{_short(q.dtype)}{'-grad' if grad else ''}"


def attention_backend(q: Tensor, k: Tensor, axis: str, grad: bool) -> str | None:
    """The fastest backend on a shape, or None where it was not measured."""
    table = _table(q.device)
    return table.get(attention_key(q, k, axis, grad), {}).get("backend") if table else None


def convolution_key(x: Tensor, w: Tensor, stride: Sequence[int]) -> str:
    """A call's name in the table: `conv_transpose3d/D256-C128-k4x4x4-s2x2x2-8x32x32-bfloat16`."""
    kernel, step, size = ("x".join(str(n) for n in v) for v in (w.shape[2:], stride, x.shape[-3:]))
    return f"conv_transpose3d/D{w.shape[0]}-C{w.shape[1]}-k{kernel}-s{step}-{size}-{_short(x.dtype)}"


def cudnn_convolves_faster(x: Tensor, w: Tensor, stride: Sequence[int], groups: int) -> bool:
    """Whether cuDNN was measured faster; unmeasured, it takes groups, whose products are too narrow for our tiles."""
    return bool(_table(x.device).get(convolution_key(x, w, stride), {}).get("cudnn", groups > 1))


def product_algorithm(key: str, device: torch.device, version: int) -> bytes | None:
    """The algorithm of cuBLASLt by which a product was measured faster than by torch; None under another version."""
    found = _table(device).get(key, {})
    return bytes.fromhex(found["algorithm"]) if found.get("version") == version else None


def has_products(device: torch.device, version: int) -> bool:
    """Whether the table names an algorithm of this version for any product."""
    return any(fields.get("version") == version for fields in _table(device).values())


def _table(device: torch.device) -> dict[str, dict[str, Any]]:
    return tiles.measured(tiles.gpu_of(device).name)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
