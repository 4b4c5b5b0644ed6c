"""Tensors as the integers that csrc/cpu/bindings.h takes: pointer, dtype code, strides in elements."""

import torch
from torch import Tensor

CODES = {
    torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3, torch.int8: 4, torch.uint8: 5,
}  # fmt: skip
NO_ROWS = (0,) * 7
NO_GROUPS = (0,) * 3
NO_HEADS = (0,) * 6


def rows(x: Tensor) -> tuple[int, ...]:
    """x (..., D) as (pointer, dtype, n1, n2, s0, s1, s2); leading axes are merged, and at most three may remain."""
    width = x.shape[-1]
    if x.is_contiguous():
        return x.data_ptr(), CODES[x.dtype], 1, x.numel() // width, 0, 0, width
    merged: list[tuple[int, int]] = []
    for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if n == 1:
            continue
        if merged and merged[-1][1] == n * s:
            merged[-1] = (merged[-1][0] * n, s)
        else:
            merged.append((n, s))
    (_, s0), (n1, s1), (n2, s2) = [(1, 0)] * (3 - len(merged)) + merged
    return x.data_ptr(), CODES[x.dtype], n1, n2, s0, s1, s2


def addressable(x: Tensor) -> Tensor:
    """x, or a copy where more than three leading axes do not merge."""
    return x if x.dim() <= 4 or x.is_contiguous() else x.contiguous()


def groups(x: Tensor) -> tuple[int, int, int]:
    """x (G, D) or (D,) as (pointer, dtype, row stride)."""
    return x.data_ptr(), CODES[x.dtype], x.stride(0) if x.dim() == 2 else 0


def heads(x: Tensor) -> tuple[int, ...]:
    """x (B, F, N, H, K) as (pointer, dtype, strides of B, F, N, H)."""
    return x.data_ptr(), CODES[x.dtype], *x.stride()[:4]


def shape(x: Tensor, group: Tensor | None = None) -> tuple[int, int, int]:
    return x.numel() // x.shape[-1], x.shape[-1], group.shape[0] if group is not None else 1
