"""Checks of conv_transpose3d: what torch refuses, refused before any work, with argument, rule and value."""

from collections.abc import Sequence

import torch
from torch import Tensor

Triple = int | Sequence[int]
Window = tuple[tuple[int, ...], ...]
_OP = "conv_transpose3d"
_MOST = 2**31 - 1


class Refused(ValueError, RuntimeError):
    """A bad value: a ValueError as in every op here, and a RuntimeError, which torch raises for it."""


class RefusedType(TypeError, NotImplementedError):
    """A bad dtype or layout: a TypeError as in every op here, and a NotImplementedError, which torch raises for it."""


def check_conv_transpose3d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Triple,
    padding: Triple,
    output_padding: Triple,
    groups: int,
    dilation: Triple,
    pad_mode: str,
) -> Window:
    """(stride, padding, output_padding, dilation, the result's size), three numbers each."""
    _check_tensors(x, w, b)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"{_OP}: groups must be an integer, got {type(groups).__name__}")
    if groups < 1:
        raise Refused(f"{_OP}: groups must be positive, got {groups}")
    if not isinstance(pad_mode, str) or pad_mode not in ("zeros", "replicate"):
        raise Refused(f"{_OP}: pad_mode must be 'zeros' or 'replicate', got {pad_mode!r}")
    stride, dilation = _triple("stride", stride, 1), _triple("dilation", dilation, 1)
    padding, extra = _triple("padding", padding, 0), _triple("output_padding", output_padding, 0)
    if any(e >= s and e >= d for e, s, d in zip(extra, stride, dilation, strict=True)):
        raise Refused(
            f"{_OP}: output_padding must be smaller than stride or dilation, got {extra}, stride {stride}, "
            f"dilation {dilation}"
        )
    if w.shape[0] % groups:
        raise Refused(f"{_OP}: w must be (C, ...) with groups = {groups} dividing C, got {tuple(w.shape)}")
    if x.shape[-4] != w.shape[0]:
        raise Refused(f"{_OP}: x must have w's C = {w.shape[0]} channels, got {tuple(x.shape)}")
    if b is not None and b.shape != (w.shape[1] * groups,):
        raise Refused(f"{_OP}: b must be (C_out,) with C_out = {w.shape[1] * groups}, got {tuple(b.shape)}")
    spans = zip(x.shape[-3:], w.shape[2:], stride, padding, extra, dilation, strict=True)
    size = tuple((n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, e, d in spans)
    if any(n < 0 for n in size):
        raise Refused(f"{_OP}: padding must leave an output, got {padding}, which leaves {size}")
    return stride, padding, extra, dilation, size


def _check_tensors(x: Tensor, w: Tensor, b: Tensor | None) -> None:
    for name, t in (("x", x), ("w", w), ("b", b)):
        if not isinstance(t, Tensor) and not (name == "b" and t is None):
            raise TypeError(f"{_OP}: {name} must be a tensor, got {type(t).__name__}")
        if t is None:
            continue
        if not (t.is_floating_point() or t.is_complex()):
            raise RefusedType(f"{_OP}: {name} must be floating, got {t.dtype}")
        if t.layout != torch.strided:
            raise RefusedType(f"{_OP}: {name} must be a dense tensor, got {t.layout}")
        if t.dtype != x.dtype:
            raise Refused(f"{_OP}: {name} must have x's dtype {x.dtype}, got {t.dtype}")
        if t.device != x.device:
            raise Refused(f"{_OP}: {name} must be on {x.device} as x is, got {t.device}")
    if x.dim() not in (4, 5):
        raise Refused(f"{_OP}: x must be (B, C, T, H, W) or (C, T, H, W), got {tuple(x.shape)}")
    if w.dim() != 5 or 0 in w.shape:
        raise Refused(f"{_OP}: w must be (C, C_out / groups, kT, kH, kW), none of them 0, got {tuple(w.shape)}")
    if 0 in x.shape[-3:]:
        raise Refused(f"{_OP}: x must have no empty axis but the batch, got {tuple(x.shape)}")


def _triple(name: str, value: Triple, least: int) -> tuple[int, ...]:
    # four times a call: what everybody passes is told apart at once, what is left is refused or a rarer spelling
    if type(value) is int and least <= value <= _MOST:
        return value, value, value
    whole = type(value) is tuple and tuple(map(type, value)) == (int, int, int)
    if whole and min(value) >= least and max(value) <= _MOST:  # type: ignore[arg-type]
        return value  # type: ignore[return-value]
    given = tuple(value) if isinstance(value, Sequence | torch.Size) and not isinstance(value, str) else (value,)
    if any(isinstance(v, bool) or not isinstance(v, int | torch.SymInt) for v in given):
        raise TypeError(f"{_OP}: {name} must be one integer or three, got {value!r}")
    if len(given) not in (1, 3):
        raise Refused(f"{_OP}: {name} must be one integer or three, got {value!r}")
    if min(given) < least or max(given) > _MOST:
        raise Refused(f"{_OP}: {name} must be at least {least} and below 2**31, got {value!r:.40}")
    return given * 3 if len(given) == 1 else given
