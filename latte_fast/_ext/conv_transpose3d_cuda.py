"""Launches the CUDA kernels of conv_transpose3d: every buffer is torch's, every kernel on x's device and stream."""

from typing import Any

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import CODES
from latte_fast._ext.conv_transpose3d import Geometry, Triple, empty, extended, folded, geometry

LIMIT = 2**30  # sizes and reaches are 32-bit, addresses 64
DIRECT_DEPTH, DIRECT_COLS = 8, 64  # kMostDepth, kMostCols of csrc/cuda
TILE, SLAB = 64, 32  # kColTile, kWidePixels of csrc/cuda


def why_not(
    x: Tensor, w: Tensor, stride: Triple = (1,) * 3, padding: Triple = (0,) * 3, dilation: Triple = (1,) * 3
) -> str | None:
    if x.dtype not in CODES or x.dtype == torch.float64:
        return f"the CUDA kernels need fp32, bf16 or fp16, got {x.dtype}"
    if 0 in x.shape[1:] or 0 in w.shape:
        return f"the CUDA kernels need sizes above zero, got x {tuple(x.shape)} and w {tuple(w.shape)}"
    spans = zip(x.shape[-3:], w.shape[2:], stride, padding, dilation, strict=True)
    reach = max(n * s + p + d * k for n, k, s, p, d in spans)
    if max(*x.shape, *w.shape, reach) >= LIMIT:
        return (
            f"the CUDA kernels need sizes and reaches below 2**30, got x {tuple(x.shape)}, w {tuple(w.shape)}, "
            f"stride {stride}, padding {padding}, dilation {dilation}"
        )
    return None


def conv_transpose3d_fwd(
    x: Tensor, w: Tensor, b: Tensor | None, size: Triple, window: tuple, groups: int, replicate: bool
) -> Tensor:
    """x (B, C, T, H, W) -> (B, C_out, *size); window is (stride, padding, dilation), three numbers each."""
    out = empty((x.shape[0], w.shape[1] * groups, *size), x)
    if not out.numel():
        return out
    b = None if b is None else b.contiguous()
    stride, padding, dilation = window
    depth, cols, kernel = x.shape[1] // groups, w.shape[1], tuple(w.shape[2:])
    window = (x.shape[2:], size, kernel, *window)
    if is_direct(x, w, size, stride, padding, dilation, groups):
        w = w.contiguous()
        shape = (x.shape[0], groups, depth, cols, CODES[x.dtype], 0, 0, 1, 0)
        _launch("conv_direct_cuda", x, _volume(x, groups), _volume(out, groups), _at(w), _at(b), shape, window)
        return out
    matrices = _matrices(w.reshape(groups, depth, cols, -1).permute(0, 3, 2, 1))
    _correlate(_channels_last(x, groups), out, matrices, b, groups, window, True, replicate)
    return out


def is_direct(
    x: Tensor, w: Tensor, size: Triple, stride: Triple, padding: Triple, dilation: Triple, groups: int
) -> bool:
    """Whether every output has just one tap and few channels, so that memory traffic is all that counts."""
    spans = zip(w.shape[2:], stride, dilation, x.shape[2:], padding, size, strict=True)
    once = all(k == s and (k == 1 or d == 1) and o == n * s - 2 * p for k, s, d, n, p, o in spans)
    return once and x.shape[1] // groups <= DIRECT_DEPTH and w.shape[1] <= DIRECT_COLS


def conv_transpose3d_bwd(
    dy: Tensor, x: Tensor, w: Tensor, window: tuple, groups: int, replicate: bool, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, w and the bias, each empty where `needs` does not ask for it."""
    g = geometry(x, w, tuple(dy.shape[2:]), window, groups, replicate)
    rows = _channels_last(dy, groups) if needs[0] or needs[1] else dy
    dx = _input_gradient(dy, rows, x, w, g) if needs[0] else x.new_empty(0)
    dw = _weight_gradient(dy, rows, x, w, g) if needs[1] else w.new_empty(0)
    db = dy.sum((0, 2, 3, 4)) if needs[2] else w.new_empty(0)
    return dx, dw, db


def _input_gradient(dy: Tensor, rows: Tensor, x: Tensor, w: Tensor, g: Geometry) -> Tensor:
    size, padding = extended(x, g)
    folds = size != tuple(x.shape[2:])
    # the gradients of repeated edges are added before they are rounded
    dx = empty((*x.shape[:2], *size), x, torch.promote_types(x.dtype, torch.float32) if folds else x.dtype)
    if not dx.numel() or not dy.numel():
        return empty(x.shape, x).zero_()
    matrices = _matrices(w.reshape(g.groups, x.shape[1] // g.groups, w.shape[1], -1).permute(0, 3, 1, 2))
    window = (dy.shape[2:], size, g.kernel, g.stride, padding, g.dilation)
    _correlate(rows, dx, matrices, None, g.groups, window, False, False)
    return folded(dx, x, g) if folds else dx


def _weight_gradient(dy: Tensor, rows: Tensor, x: Tensor, w: Tensor, g: Geometry) -> Tensor:
    if not dy.numel():
        return w.new_zeros(w.shape)
    size, padding = extended(x, g)
    channels, cols, taps = x.shape[1] // g.groups, w.shape[1], w[0, 0].numel()
    pixels = x.shape[0] * size[0] * size[1] * size[2]
    splits, per_split = cut(pixels, g.groups * taps * -(-channels // TILE) * -(-cols // TILE), _multiprocessors(x))
    sums = torch.empty((splits, g.groups, taps, channels, cols), dtype=torch.float32, device=x.device)
    dw = torch.empty(w.shape, dtype=w.dtype, device=w.device)
    x_rows = _channels_last(x, g.groups)  # bound to a name, so that it outlives the launch
    _launch(
        "conv_weight_gradient_cuda", x, _packed(x_rows), _packed(rows), _at(sums), _at(dw),
        (x.shape[0], g.groups, channels, cols, splits, CODES[x.dtype]), x.shape[2:], g.before, per_split,
        (dy.shape[2:], size, g.kernel, g.stride, padding, g.dilation),
    )  # fmt: skip
    return dw


def cut(pixels: int, tiles: int, multiprocessors: int) -> tuple[int, int]:
    """(splits, pixels a split) for four blocks a multiprocessor, fewer where pixels would not keep them busy."""
    splits = max(1, min(4 * multiprocessors // tiles, pixels // (8 * SLAB)))
    per_split = -(-pixels // (splits * SLAB)) * SLAB
    return -(-pixels // per_split), per_split


def _correlate(
    x: Tensor, out: Tensor, w: Tensor, b: Tensor | None, groups: int, window: tuple, transposed: bool, replicate: bool
) -> None:
    lanes = 16 // out.element_size()
    cols = out.shape[1] // groups
    vector = out.is_contiguous(memory_format=torch.channels_last_3d) and out.stride(1) == 1 and cols % lanes == 0
    layout = (int(out.dtype != x.dtype), int(vector), int(transposed), int(replicate))
    shape = (out.shape[0], groups, w.shape[-1], cols, CODES[x.dtype], *layout)
    _launch("conv_correlate_cuda", x, _packed(x), _volume(out, groups), _at(w), _at(b), shape, window)


def _channels_last(x: Tensor, groups: int) -> Tensor:
    """x (B, C, T, H, W) as (B, T, H, W, groups, channels), x itself where 16-byte copies can read it, else a copy."""
    return _rows(x.permute(0, 2, 3, 4, 1).unflatten(-1, (groups, x.shape[1] // groups)))


def _matrices(w: Tensor) -> Tensor:
    """w (groups, taps, cols, depth) in that order, its depth padded."""
    return _rows(w[:, None, None]).contiguous()


def _rows(x: Tensor) -> Tensor:
    """x (B, T, H, W, groups, channels) with rows of channels aligned to 16 bytes and padded to 16 with zeros."""
    lanes = 16 // x.element_size()
    depth = x.shape[-1]
    strides = [s for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1]
    if depth % lanes == 0 and x.stride(-1) == 1 and not any(s % lanes for s in strides) and x.data_ptr() % 16 == 0:
        return x
    padded = -(-depth // lanes) * lanes
    to = torch.empty((*x.shape[:-1], padded), dtype=x.dtype, device=x.device)
    shape = (x.shape[0], x.shape[4], depth, padded, x.element_size())
    _launch("conv_pack_cuda", x, _packed(x), _at(to), shape, x.shape[1:4])
    return to


def _packed(x: Tensor) -> tuple[int, ...]:
    """x (B, T, H, W, groups, channels) as pointer and strides: n, group, c, t, h, w."""
    n, t, h, w, group, c = x.stride()
    return _at(x), n, group, c, t, h, w


def _volume(x: Tensor, groups: int) -> tuple[int, ...]:
    n, c, t, h, w = x.stride()
    return _at(x), n, x.shape[1] // groups * c, c, t, h, w


def _at(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _multiprocessors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def _place(x: Tensor) -> tuple[int, int]:
    """The index of x's device, and its current stream."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def _launch(name: str, x: Tensor, *args: Any) -> None:
    device, stream = _place(x)
    with torch.cuda.device(device):  # restores the current device, which the launcher's cudaSetDevice changes
        error = getattr(_ext.load(), name)(*args, device, stream)
    if error:
        raise RuntimeError(f"conv_transpose3d: the CUDA launch failed: {error}")
