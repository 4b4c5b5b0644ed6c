"""Launches the C++ kernels of conv_transpose3d."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import CODES

Triple = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """The window of a transposed convolution; `before` and `after` count the edge pixels that it repeats."""

    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    groups: int
    before: Triple = (0, 0, 0)
    after: Triple = (0, 0, 0)


def why_not(x: Tensor, w: Tensor, *window: Triple) -> str | None:
    if x.dtype not in CODES:
        return f"the C++ kernels need fp32, bf16, fp16 or fp64, got {x.dtype}"
    if 0 in x.shape[1:] or 0 in w.shape:
        return f"the C++ kernels need sizes above zero, got x {tuple(x.shape)} and w {tuple(w.shape)}"
    return None


def _volume(x: Tensor) -> tuple[int, ...]:
    return x.data_ptr(), CODES[x.dtype], *x.stride()


def geometry(x: Tensor, w: Tensor, out: Triple, window: tuple, groups: int, replicate: bool) -> Geometry:
    kernel = tuple(w.shape[2:])
    stride, padding, dilation = window
    if not replicate:
        return Geometry(kernel, stride, padding, dilation, groups)
    # how far outside the input an output reads: pixels that are clamped to the edge
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    before = tuple(max(0, r // s) for r, s in zip(reach, stride, strict=True))
    ends = zip(out, padding, stride, x.shape[2:], strict=True)
    after = tuple(max(0, (o - 1 + p) // s - (n - 1)) for o, p, s, n in ends)
    return Geometry(kernel, stride, padding, dilation, groups, before, after)


def conv_transpose3d_fwd(
    x: Tensor, w: Tensor, b: Tensor | None, size: Triple, window: tuple, groups: int, replicate: bool
) -> Tensor:
    """x (B, C, T, H, W) -> (B, C_out, *size); window is (stride, padding, dilation), three numbers each."""
    out = empty((x.shape[0], w.shape[1] * groups, *size), x)
    if not out.numel():
        return out
    w = w.contiguous()
    taps = w[0, 0].numel()
    stride, padding, dilation = window
    b = None if b is None else b.contiguous()
    depth, cols = x.shape[1] // groups, w.shape[1]
    _ext.load().conv_correlate(
        _volume(x), _volume(out), w.data_ptr(), 0 if b is None else b.data_ptr(),
        (x.shape[0], groups, depth, cols, 1, int(replicate), torch.get_num_threads()),
        ((depth * cols * taps, cols * taps, taps), w.shape[2:], x.shape[2:], size, stride, padding, dilation),
    )  # fmt: skip
    return out


def conv_transpose3d_bwd(
    dy: Tensor, x: Tensor, w: Tensor, window: tuple, groups: int, replicate: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, w and the bias, each empty where `needs` does not ask for it."""
    w = w.contiguous()
    g = geometry(x, w, tuple(dy.shape[2:]), window, groups, replicate)
    dx = _input_gradient(dy, x, w, g) if needs[0] else x.new_empty(0)
    dw = _weight_gradient(dy, x, w, g) if needs[1] else w.new_empty(0)
    db = dy.sum((0, 2, 3, 4)) if needs[2] else w.new_empty(0)
    return dx, dw, db


def empty(shape: Triple, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised, of x's dtype if none is given, channels last where x is, as torch's own results are."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=layout)


def extended(x: Tensor, g: Geometry) -> tuple[Triple, Triple]:
    """x's sizes with the repeated edges, and the padding that then holds."""
    size = tuple(n + a + z for n, a, z in zip(x.shape[2:], g.before, g.after, strict=True))
    return size, tuple(p + a * s for p, a, s in zip(g.padding, g.before, g.stride, strict=True))


def _input_gradient(dy: Tensor, x: Tensor, w: Tensor, g: Geometry) -> Tensor:
    size, padding = extended(x, g)
    folds = size != tuple(x.shape[2:])
    # the gradients of repeated edges are added before they are rounded
    dtype = torch.promote_types(x.dtype, torch.float32) if folds else x.dtype
    dx = empty((*x.shape[:2], *size), x, dtype)
    taps = w[0, 0].numel()
    cols, depth = x.shape[1] // g.groups, w.shape[1]
    if dx.numel():
        _ext.load().conv_correlate(
            _volume(dy), _volume(dx), w.data_ptr(), 0,
            (x.shape[0], g.groups, depth, cols, 0, 0, torch.get_num_threads()),
            ((depth * cols * taps, taps, depth * taps), g.kernel, dy.shape[2:], size, g.stride, padding, g.dilation),
        )  # fmt: skip
    return folded(dx, x, g) if folds else dx


def folded(dx: Tensor, x: Tensor, g: Geometry) -> Tensor:
    """The gradient of x from the gradient dx of x with its edges repeated; dx is overwritten."""
    for axis, (before, n) in enumerate(zip(g.before, x.shape[2:], strict=True), start=2):
        first = dx.narrow(axis, 0, before).sum(axis)
        last = dx.narrow(axis, before + n, dx.shape[axis] - before - n).sum(axis)
        dx = dx.narrow(axis, before, n)
        dx.select(axis, 0).add_(first)
        dx.select(axis, n - 1).add_(last)
    return empty(x.shape, x).copy_(dx)


def _weight_gradient(dy: Tensor, x: Tensor, w: Tensor, g: Geometry) -> Tensor:
    if not dy.numel():
        return torch.zeros_like(w)
    size, padding = extended(x, g)
    channels, depth = x.shape[1] // g.groups, w.shape[1]
    dw = torch.empty((g.groups, *g.kernel, channels, depth), dtype=w.dtype)
    _ext.load().conv_weight_gradient(
        _volume(x), _volume(dy), dw.data_ptr(), channels, x.shape[2:], g.before,
        (x.shape[0], g.groups, depth, channels, 0, 0, torch.get_num_threads()),
        ((0, 0, 0), g.kernel, dy.shape[2:], size, g.stride, padding, g.dilation),
    )  # fmt: skip
    return dw.permute(0, 4, 5, 1, 2, 3).reshape(w.shape).contiguous()
