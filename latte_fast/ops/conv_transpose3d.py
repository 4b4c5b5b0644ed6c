"""conv_transpose3d: the transposed convolution that restores frames after compression-frame patches."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.backends import autocast_dtype
from latte_fast.ops.conv_checks import Triple, check_conv_transpose3d
from latte_fast.ops.platforms import why_not_cpu, why_not_cuda
from latte_fast.ops.registration import call_directly, register_gradient, register_op
from latte_fast.reference.functional import conv_transpose3d_ref

Window = tuple[int, ...]


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
    args = (size, stride3, padding3, dilation3, groups, pad_mode == "replicate")
    if call_directly(x, w, b):
        out = _forward(batched, w, b, *args, backend)
    else:
        out = torch.ops.latte_fast.conv_transpose3d.default(batched, w, b, *args, backend)
    return out if x.dim() == 5 else out[0]


def _choose(x: Tensor, w: Tensor, stride: Window, padding: Window, dilation: Window, groups: int) -> str:
    backend = backends.choose("conv_transpose3d", x, w, stride, padding, dilation)
    if backend != "cuda" or backends.forced("conv_transpose3d") or _why_not_cudnn(x, w):
        return backend
    return "cudnn" if _cudnn_is_faster(x, w, stride, groups) else backend


def _cudnn_is_faster(x: Tensor, w: Tensor, stride: Window, groups: int) -> bool:
    """By this GPU's measurement of the shape; without one, for groups, whose products are too narrow for the tiles."""
    if torch.compiler.is_compiling():  # sizes may be symbols, which no table holds
        return groups > 1
    from latte_fast.kernels import tiles

    measured = tiles.measured(tiles.gpu_of(x.device).name)
    return bool(measured.get(f"conv_transpose3d/{shape_key(x, w, stride)}", {}).get("cudnn", groups > 1))


def shape_key(x: Tensor, w: Tensor, stride: Window) -> str:
    """A call's name in kernels/configs/<gpu>.json: `D256-C128-k4x4x4-s2x2x2-8x32x32-bfloat16`."""
    kernel, step, size = ("x".join(str(n) for n in v) for v in (w.shape[2:], stride, x.shape[-3:]))
    return f"D{w.shape[0]}-C{w.shape[1]}-k{kernel}-s{step}-{size}-{str(x.dtype).removeprefix('torch.')}"


def _launchers(backend: str) -> ModuleType:
    if backend == "cuda":
        from latte_fast._ext import conv_transpose3d_cuda as launchers
    else:
        from latte_fast._ext import conv_transpose3d as launchers  # type: ignore[no-redef]
    return launchers


def _forward(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    replicate: bool,
    backend: str,
) -> Tensor:
    window = (tuple(stride), tuple(padding), tuple(dilation))
    return _launchers(backend).conv_transpose3d_fwd(x, w, b, tuple(size), window, groups, replicate)


def _forward_fake(x: Tensor, w: Tensor, b: Tensor | None, size: Sequence[int], *args: Any) -> Tensor:
    groups, backend = args[3], args[5]
    shape = (x.shape[0], w.shape[1] * groups, *size)
    return _launchers(backend).empty(shape, x)


def _backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    replicate: bool,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    window = (tuple(stride), tuple(padding), tuple(dilation))
    return _launchers(backend).conv_transpose3d_bwd(dy, x, w, window, groups, replicate, needs)


def _backward_fake(dy: Tensor, x: Tensor, w: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    needs, backend = args[5], args[6]
    dx = _launchers(backend).empty(x.shape, x) if needs[0] else x.new_empty(0)
    dw = w.new_empty(w.shape) if needs[1] else w.new_empty(0)
    return dx, dw, dy.new_empty(dy.shape[1] if needs[2] else 0)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, w, b, _, *ctx.window, ctx.backend = inputs
    ctx.save_for_backward(x, w)
    ctx.has_bias = b is not None


def _gradient(ctx: Any, dy: Tensor) -> tuple:
    needs = [bool(n) for n in ctx.needs_input_grad[:3]]
    needs[2] = needs[2] and ctx.has_bias
    x, w = ctx.saved_tensors
    grads = torch.ops.latte_fast.conv_transpose3d_backward.default(dy, x, w, *ctx.window, needs, ctx.backend)
    return (*(g if n else None for g, n in zip(grads, needs, strict=True)), *[None] * 7)


register_op(
    "conv_transpose3d",
    "(Tensor x, Tensor w, Tensor? b, SymInt[] size, int[] stride, int[] padding, int[] dilation, int groups, "
    "bool replicate, str backend) -> Tensor",
    _forward,
    _forward_fake,
)
register_op(
    "conv_transpose3d_backward",
    "(Tensor dy, Tensor x, Tensor w, int[] stride, int[] padding, int[] dilation, int groups, bool replicate, "
    "bool[] needs, str backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
register_gradient("conv_transpose3d", _setup, _gradient)


def _why_not_cpu(x: Tensor, w: Tensor, *window: Window) -> str | None:
    return why_not_cpu(x) or _launchers("cpu").why_not(x, w)


def _why_not_cuda(x: Tensor, w: Tensor, *window: Window) -> str | None:
    return why_not_cuda(x) or _launchers("cuda").why_not(x, w, *window)


def _why_not_cudnn(x: Tensor, w: Tensor, *window: Window) -> str | None:
    if x.device.type != "cuda":
        return f"cuDNN needs a CUDA tensor, got one on {x.device.type}"
    if not torch.backends.cudnn.enabled:
        return "torch.backends.cudnn.enabled is False"
    if x.dtype == torch.float32 and _rounds_to_tf32():
        return "cuDNN would round fp32 to TF32; set torch.backends.cudnn.allow_tf32 = False"
    return None


@torch.compiler.assume_constant_result
def _rounds_to_tf32() -> bool:
    """Whether cuDNN may; reading allow_tf32 raises once somebody has set the switches of torch 2.9 apart."""
    convolution = getattr(torch.backends.cudnn, "conv", None)
    return torch.backends.cudnn.allow_tf32 if convolution is None else convolution.fp32_precision == "tf32"


backends.register("conv_transpose3d", {"cpu": _why_not_cpu, "cuda": _why_not_cuda, "cudnn": _why_not_cudnn})
