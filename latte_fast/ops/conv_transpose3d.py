"""conv_transpose3d: the transposed convolution that restores frames after compression-frame patches."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast._ext.conv_transpose3d import empty as empty_as_torch
from latte_fast.backends import autocast_dtype
from latte_fast.kernels import library_choice
from latte_fast.kernels.conv_libraries import why_not_cudnn
from latte_fast.ops.conv_checks import Triple, check_conv_transpose3d
from latte_fast.ops.registration import KernelOp, empty
from latte_fast.reference.functional import conv_transpose3d_ref

Window = tuple[int, ...]
_NAME = "conv_transpose3d"


def conv_transpose3d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: Triple = 1,
    padding: Triple = 0,
    output_padding: Triple = 0,
    groups: int = 1,
    dilation: Triple = 1,
    pad_mode: str = "zeros",
) -> Tensor:
    """F.conv_transpose3d: out[o] = b + the sum of x[i] w[k] over o = i stride - padding + k dilation.

    pad_mode="replicate" lets i run over every integer and reads x at the nearest edge where i is outside; the shape of
    the result stays. That equals replicate-padding x by P on each side of an axis and then the plain operator with
    padding + P * stride, for any P >= (dilation * (kernel - 1) - padding + output_padding) / stride. The decoder of a
    3D-VQGAN pads x by kernel - stride, the larger half L in front, and convolves with padding kernel - 1: here padding
    kernel - 1 - L * stride, and where the halves differ (kernel 4, stride 1) the last `stride` outputs are dropped.

    Args:
        x: (B, C, T, H, W) or (C, T, H, W).
        w: (C, C_out / groups, kT, kH, kW).
        b: (C_out,) or None.
        stride: one number or three.
        padding: as stride.
        output_padding: as stride.
        groups: of channels.
        dilation: as stride.
        pad_mode: "zeros" or "replicate".
    """
    auto = autocast_dtype(x.device.type) if isinstance(x, Tensor) and x.is_floating_point() else None
    if auto is not None and isinstance(w, Tensor) and torch.float64 not in (x.dtype, w.dtype):
        x, w, b = x.to(auto), w.to(auto), b.to(auto) if isinstance(b, Tensor) else b
    stride3, padding3, extra, dilation3, size = check_conv_transpose3d(
        x, w, b, stride, padding, output_padding, groups, dilation, pad_mode
    )
    backend = _choose(x, w, stride3, padding3, dilation3, groups)
    if backend in ("reference", "cudnn"):
        return conv_transpose3d_ref(x, w, b, stride3, padding3, extra, groups, dilation3, pad_mode)
    batched = x if x.dim() == 5 else x[None]
    out = _OP.run(backend, batched, w, b, size, stride3, padding3, dilation3, groups, pad_mode == "replicate")
    return out if x.dim() == 5 else out[0]


def _choose(x: Tensor, w: Tensor, stride: Window, padding: Window, dilation: Window, groups: int) -> str:
    backend = backends.choose(_NAME, x, w, stride, padding, dilation)
    if backend != "cuda" or backends.is_forced(_NAME) or why_not_cudnn(x, w):
        return backend
    if torch.compiler.is_compiling():  # sizes may be symbols, which no table holds
        return "cudnn" if groups > 1 else backend
    return "cudnn" if library_choice.cudnn_convolves_faster(x, w, stride, groups) else backend


def _flops(x: Sequence[int], w: Sequence[int]) -> int:
    """Operations of x (B, C, T, H, W): every pixel meets every tap and C_out / groups channels, as torch counts it."""
    return 2 * math.prod(x) * math.prod(w[1:])


def _window(*lists: Sequence[int]) -> tuple[Window, ...]:
    """What the dispatcher hands over as lists, as launchers take it."""
    return tuple(tuple(numbers) for numbers in lists)


def _backward_fake(dy: Tensor, x: Tensor, w: Tensor, *window_and_needs: Any) -> tuple[Tensor, ...]:
    needs = window_and_needs[-1]
    dx = empty_as_torch(x.shape, x) if needs[0] else x.new_empty(0)
    return dx, empty(w) if needs[1] else w.new_empty(0), dy.new_empty(dy.shape[1] if needs[2] else 0)


_OP = KernelOp(
    _NAME,
    "(Tensor x, Tensor w, Tensor? b, SymInt[] size, int[] stride, int[] padding, int[] dilation, int groups, "
    "bool replicate, str backend) -> Tensor y",
    "(Tensor dy, Tensor x, Tensor w, int[] stride, int[] padding, int[] dilation, int groups, bool replicate, "
    "bool[] needs, str backend) -> (Tensor dx, Tensor dw, Tensor db)",
    fake=lambda x, w, b, size, stride, padding, dilation, groups, replicate: empty_as_torch(
        (x.shape[0], w.shape[1] * groups, *size), x
    ),
    backward_fake=_backward_fake,
    launch=lambda launcher, x, w, b, size, stride, padding, dilation, groups, replicate: launcher(
        x, w, b, tuple(size), _window(stride, padding, dilation), groups, replicate
    ),
    launch_backward=lambda launcher, dy, x, w, stride, padding, dilation, *rest: launcher(
        dy, x, w, _window(stride, padding, dilation), *rest
    ),
    flops=lambda x, w, *rest: _flops(x, w),
    backward_flops=lambda dy, x, w, *rest: sum(rest[-1][:2]) * _flops(x, w),
    ours=("cpu", "cuda"),
    libraries={"cudnn": why_not_cudnn},
    # frames out of compression-frame patches of two
    example=lambda sizes: {
        "x": sizes.randn(sizes.clips, 8, sizes.frames // 2, 32, 32),
        "w": sizes.randn(8, 8, 2, 1, 1),
        "stride": (2, 1, 1),
    },
)
