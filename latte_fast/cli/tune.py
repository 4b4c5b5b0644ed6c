"""latte-fast tune."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from latte_fast import backends, ops, use_backend
from latte_fast.config import SIZES

FRAMES, PATCHES = 16, 256
# depth, cols, size, kernel, stride, padding of conv_transpose3d: a 3D-VQGAN's decoder and Latte's frames
CONVOLUTIONS = [
    (depth, cols, size, (4, 4, 4), stride, 1)
    for depth, cols, size in ((256, 256, (4, 16, 16)), (256, 128, (8, 32, 32)), (128, 64, (16, 64, 64)))
    for stride in ((2, 2, 2), (1, 2, 2))
] + [(8, 8, (8, 32, 32), (n, 1, 1), (n, 1, 1), 0) for n in (2, 4)]


def tune(
    sizes: tuple[Literal["XL", "L", "B", "S"], ...] = ("XL",),
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    clips: int = 8,
) -> None:
    """Measure the Triton kernels' tiles, and where cuDNN convolves faster, and keep it in kernels/configs/<gpu>.json.

    Args:
        sizes: of the model, whose widths and heads are measured.
        dtype: of the activations.
        clips: in a batch, 16 frames of 256 patches each.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            "tune: needs a CUDA device, and torch sees none; `latte-fast doctor` says what this machine has"
        )
    if clips < 1:
        raise SystemExit(f"tune: clips must be at least 1, got {clips}")
    from latte_fast.kernels import measure_tiles

    device = torch.device("cuda", torch.cuda.current_device())
    choices = cudnn_choices(CONVOLUTIONS, getattr(torch, dtype), device, measure_tiles.milliseconds)
    measure_tiles.save(choices, device)
    for key, choice in choices.items():
        print(f"  {key:80} {'cuDNN' if choice['cudnn'] else 'ours'}")
    for size in sizes:
        best: dict[str, dict[str, int]] = {}
        for launch in launches(size, getattr(torch, dtype), clips):
            found = measure_tiles.tune([launch])
            measure_tiles.save(found, device)  # minutes of compiling lie between two launches
            best |= found
        print(f"{size}: {len(best)} tiles changed")
        for key, fields in sorted(best.items()):
            print(f"  {key:48} {', '.join(f'{name} {value}' for name, value in fields.items())}")


def cudnn_choices(
    cases: Iterable[tuple], dtype: torch.dtype, device: torch.device, timer: Callable[[Callable[[], Any]], float]
) -> dict[str, dict[str, int]]:
    """`conv_transpose3d/<shape>` -> whether cuDNN is faster, forward and backward together, where both can serve."""
    shape_key = importlib.import_module("latte_fast.ops.conv_transpose3d").shape_key
    choices = {}
    for depth, cols, size, kernel, stride, padding in cases:
        shapes = ((1, depth, *size), (depth, cols, *kernel), (cols,))
        x, w, b = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes)
        times = {}
        for backend in ("cuda", "cudnn"):
            if backends.why_not("conv_transpose3d", backend, x, w):
                break

            def step(backend: str = backend, leaves: tuple = (x, w, b), window: tuple = (stride, padding)) -> Any:
                with use_backend(conv_transpose3d=backend):
                    y = ops.conv_transpose3d(*leaves, *window)
                return torch.autograd.grad(y, leaves, torch.ones_like(y))

            times[backend] = timer(step)
        if len(times) == 2:
            choices[f"conv_transpose3d/{shape_key(x, w, stride)}"] = {"cudnn": int(times["cudnn"] < times["cuda"])}
    return choices


def launches(size: str, dtype: torch.dtype, clips: int, device: str = "cuda") -> Iterator[Callable[[], Any]]:
    """Each op's forward and backward at a model's shapes, on Triton."""
    _, d, heads = SIZES[size]

    def rows(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    x, wide = rows(clips, FRAMES, PATCHES, d), rows(clips, FRAMES, PATCHES, 4 * d)
    gate, shift, scale = rows(clips, 6 * d).chunk(6, dim=-1)[:3]
    qkv = rows(clips, FRAMES, PATCHES, 3, heads, d // heads)
    bias = rows(4 * d)
    calls: list[tuple[Callable[..., Any], tuple]] = [
        (ops.norm_modulate, (x, shift, scale)),
        (ops.gate_residual, (x, rows(*x.shape), gate)),
        (ops.gate_residual_norm_modulate, (x, rows(*x.shape), gate, shift, scale)),
        (ops.bias_gelu, (wide, bias)),
        (ops.axis_attention_qkv, (qkv, "space")),
        (ops.axis_attention_qkv, (qkv, "time")),
    ]
    for op, args in calls:
        yield partial(_forward, op, args)
        yield _backward(op, args)


def _forward(op: Callable[..., Any], args: tuple) -> Any:
    with torch.no_grad(), use_backend("triton"):
        return op(*args)


def _backward(op: Callable[..., Any], args: tuple) -> Callable[[], Any]:
    args = tuple(a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in args)
    leaves = [a for a in args if isinstance(a, Tensor)]
    with use_backend("triton"):
        out = op(*args)
    outs = out if isinstance(out, tuple) else (out,)
    dout = [torch.randn_like(o) for o in outs]
    return lambda: torch.autograd.grad(outs, leaves, dout, retain_graph=True)
