"""Input checks shared by the ops; each message names op, argument, rule and value."""

from typing import Any

import torch
from torch import Tensor

from latte_fast.backends import autocast_dtype

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALVES = (torch.bfloat16, torch.float16)
# largest number that an fp32 kernel takes
MOST = torch.finfo(torch.float32).max


def check_tensor(op: str, name: str, x: Any) -> None:
    """A dense floating tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be fp32, bf16, fp16 or fp64, got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got {x.layout}")


def checked_number(op: str, name: str, value: Any, least: float = 0.0) -> float:
    """A finite number of at least `least`."""
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if type(value) in (int, float) and not least <= value <= MOST:
        raise ValueError(f"{op}: {name} must be at least {least:g}, and finite, got {value!r:.40}")
    return value if isinstance(value, (torch.SymInt, torch.SymFloat)) else float(value)  # type: ignore[return-value]


def check_rows(op: str, name: str, x: Tensor) -> None:
    """x (..., D): floating, last dim contiguous, nothing of size zero but the batch."""
    check_tensor(op, name, x)
    if x.dim() < 2 or 0 in x.shape[1:]:
        raise ValueError(f"{op}: {name} must be (..., D) with no empty axis but the first, got {tuple(x.shape)}")
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        raise ValueError(f"{op}: {name} must have a contiguous last dim, got strides {x.stride()}")


def check_rows_like(op: str, name: str, x: Tensor) -> None:
    """x (..., D) of a linear layer, with any strides."""
    check_tensor(op, name, x)
    if x.dim() < 2 or 0 in x.shape[1:]:
        raise ValueError(f"{op}: {name} must be (..., D) with no empty axis but the first, got {tuple(x.shape)}")


def check_like(op: str, name: str, y: Tensor, x: Tensor) -> None:
    check_rows(op, name, y)
    if y.shape != x.shape:
        raise ValueError(f"{op}: {name} must have x's shape {tuple(x.shape)}, got {tuple(y.shape)}")
    check_device(op, name, y, x)


def check_device(op: str, name: str, y: Tensor, x: Tensor) -> None:
    if y.device != x.device:
        raise ValueError(f"{op}: {name} must be on {x.device} as x is, got {y.device}")


def check_weight(op: str, name: str, w: Tensor, x: Tensor) -> None:
    """w (M, D) of a linear layer on x (..., D)."""
    check_tensor(op, name, w)
    if w.dim() != 2 or w.shape[1] != x.shape[-1] or not w.shape[0]:
        raise ValueError(f"{op}: {name} must be (M, D) with D = {x.shape[-1]}, got {tuple(w.shape)}")
    check_device(op, name, w, x)
    if w.dtype != x.dtype and autocast_dtype(x.device.type) is None:
        raise TypeError(f"{op}: {name} must have the dtype {x.dtype} of the layer's input, got {w.dtype}")


def checked_vector(op: str, name: str, v: Tensor, x: Tensor, width: int, letter: str = "D") -> Tensor:
    """v (width,) on x's device as the kernels read it, side by side in memory."""
    check_tensor(op, name, v)
    if v.shape != (width,):
        raise ValueError(f"{op}: {name} must be ({letter},) with {letter} = {width}, got {tuple(v.shape)}")
    check_device(op, name, v, x)
    return v.contiguous()


def check_groups(op: str, x: Tensor, **partners: Tensor) -> None:
    """Each partner (G, D) with one G for all, which divides x's rows."""
    width = x.shape[-1]
    rows = x.numel() // width
    first = None
    for name, p in partners.items():
        check_tensor(op, name, p)
        if p.dim() != 2 or p.shape[1] != width:
            raise ValueError(f"{op}: {name} must be (G, D) with D = {width}, got {tuple(p.shape)}")
        if p.stride(1) != 1 and width != 1:
            raise ValueError(f"{op}: {name} must have a contiguous last dim, got strides {p.stride()}")
        groups = p.shape[0]
        if (rows % groups if groups else rows) != 0:
            raise ValueError(f"{op}: {name} must be (G, D) with G dividing the {rows} rows, got G = {groups}")
        first = groups if first is None else first
        if groups != first:
            raise ValueError(f"{op}: {name} must have G = {first} as the others, got {groups}")
        check_device(op, name, p, x)


def check_pos(op: str, pos: Tensor, x: Tensor) -> None:
    """pos broadcasts to x (..., D), over all of D."""
    check_tensor(op, "pos", pos)
    lengths = zip(reversed(pos.shape), reversed(x.shape), strict=False)
    broadcasts = 0 < pos.dim() <= x.dim() and all(p in (1, n) for p, n in lengths)
    if not broadcasts or pos.shape[-1] != x.shape[-1]:
        raise ValueError(f"{op}: pos must broadcast to x's shape {tuple(x.shape)}, got {tuple(pos.shape)}")
    check_device(op, "pos", pos, x)


def partners(op: str, x: Tensor, **tensors: Tensor) -> list[Tensor]:
    """The partners of a residual x in one dtype: x's, or a 16-bit one beside an fp32 x; autocast settles a mix."""
    auto = autocast_dtype(x.device.type)
    if auto is not None and any(t.dtype in HALVES for t in (x, *tensors.values())):
        return [t.to(auto) for t in tensors.values()]
    names = list(tensors)
    dtype = tensors[names[-1]].dtype
    for name, t in tensors.items():
        if t.dtype != dtype:
            raise TypeError(f"{op}: {name} must have {names[-1]}'s dtype {dtype}, got {t.dtype}")
    if x.dtype != dtype and not (x.dtype == torch.float32 and dtype in HALVES):
        raise TypeError(
            f"{op}: {', '.join(names)} must have x's dtype or be 16-bit beside an fp32 x, got {dtype}, x {x.dtype}"
        )
    return list(tensors.values())


def check_out_dtype(
    op: str, out_dtype: torch.dtype | None, default: torch.dtype, x: Tensor, partner: Tensor
) -> torch.dtype:
    if out_dtype is None:
        out_dtype = default
    if not isinstance(out_dtype, torch.dtype):
        raise TypeError(f"{op}: out_dtype must be a dtype, got {type(out_dtype).__name__}")
    known = dict.fromkeys((x.dtype, partner.dtype))
    if out_dtype not in known:
        raise TypeError(f"{op}: out_dtype must be {' or '.join(map(str, known))}, got {out_dtype}")
    return out_dtype
