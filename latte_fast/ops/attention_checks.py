"""Checks of attention: shapes, dtypes and devices of q, k, v, the rotary tables, the scale and the mask."""

import torch
from torch import Tensor

from latte_fast.ops.checks import FLOATS, check_device, check_tensor, checked_number
from latte_fast.reference.functional import Rope


def checked_scale(
    op: str, q: Tensor, k: Tensor, v: Tensor, axis: str, rope: Rope | None, scale: float | None, key_mask: Tensor | None
) -> float:
    """The scale to attend with, once every argument has been checked."""
    _check_qkv(op, q, k, v, axis)
    if rope is not None:
        if not isinstance(rope, (tuple, list)) or len(rope) != 2 or not all(isinstance(x, Tensor) for x in rope):
            raise TypeError(f"{op}: rope must be two tables (cos, sin), got {type(rope).__name__}")
        if axis != "time":
            raise ValueError(f"{op}: rope must be None on the space axis, got tables")
        want = (q.shape[1], q.shape[-1] // 2)
        for table in rope:
            check_tensor(op, "rope", table)
            if tuple(table.shape) != want or table.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{op}: rope must be two fp32 (F, K/2) = {want} tables, got {tuple(table.shape)}")
            check_device(op, "rope", table, q)
    if key_mask is not None:
        if not isinstance(key_mask, Tensor) or key_mask.layout != torch.strided:
            raise TypeError(f"{op}: key_mask must be a dense tensor, got {type(key_mask).__name__}")
        want = (q.shape[0], k.shape[2] if axis == "space" else k.shape[1])
        if tuple(key_mask.shape) != want or key_mask.dtype != torch.bool:
            raise ValueError(f"{op}: key_mask must be bool {want}, got {key_mask.dtype} {tuple(key_mask.shape)}")
        check_device(op, "key_mask", key_mask, q)
    return float(q.shape[-1] ** -0.5) if scale is None else checked_number(op, "scale", scale)


def _check_qkv(op: str, q: Tensor, k: Tensor, v: Tensor, axis: str) -> None:
    if not isinstance(axis, str) or axis not in ("space", "time"):
        raise ValueError(f"{op}: axis must be 'space' or 'time', got {axis!r}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor(op, name, x)
        if x.dtype not in FLOATS or x.dtype != q.dtype:
            raise TypeError(f"{op}: {name} must be fp32, bf16, fp16 or fp64 as q is, got {x.dtype}")
        if x.dim() != 5 or 0 in x.shape[1:]:
            raise ValueError(f"{op}: {name} must be (B, F, N, H, K) with no empty axis but B, got {tuple(x.shape)}")
        if x.stride(-1) != 1:
            raise ValueError(f"{op}: {name} must have a contiguous last dim, got strides {x.stride()}")
        check_device(op, name, x, q)
    if k.shape != v.shape:
        raise ValueError(f"{op}: v must have k's shape {tuple(k.shape)}, got {tuple(v.shape)}")
    free = 2 if axis == "space" else None
    if any(q.shape[i] != k.shape[i] for i in range(5) if i != free):
        raise ValueError(f"{op}: k must match q {tuple(q.shape)} but in Nk on the space axis, got {tuple(k.shape)}")
    width = q.shape[-1]
    if width % 8 or width > 128:
        raise ValueError(f"{op}: q must have a head width K that is a multiple of 8 up to 128, got K = {width}")
