"""latte-fast tune."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from latte_fast import backends, ops, use_backend
from latte_fast._ext import blas_lt
from latte_fast.cli.tune_products import product_choices, products
from latte_fast.config import SIZES
from latte_fast.kernels import library_choice
from latte_fast.ops.registration import REGISTRY
from latte_fast.ops.sizes import Sizes

FRAMES, PATCHES = 16, 256
# `<kernel or op>/<shape>` -> fields, as kernels/configs/<gpu>.json has them
Entries = dict[str, dict[str, Any]]
# depth, cols, size, kernel, stride, padding of conv_transpose3d: a 3D-VQGAN's decoder, Latte's compression frames
CONVOLUTIONS = [
    (depth, cols, size, (4, 4, 4), stride, 1)
    for depth, cols, size in ((256, 256, (4, 16, 16)), (256, 128, (8, 32, 32)), (128, 64, (16, 64, 64)))
    for stride in ((2, 2, 2), (1, 2, 2))
] + [(8, 8, (8, 32, 32), (n, 1, 1), (n, 1, 1), 0) for n in (2, 4)]


def tune(
    sizes: tuple[Literal["XL", "L", "B", "S"], ...] = ("XL",),
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    clips: int = 8,
    resume: Path | None = None,
) -> None:
    """Measure the Triton kernels' tiles, and where a library attends, convolves or multiplies faster.

    The winners are kept in kernels/configs/.

    Args:
        sizes: model sizes whose widths and heads are measured.
        dtype: data type of the activations.
        clips: number of clips in a batch, each of 16 frames of 256 patches.
        resume: a file of finished cases, one a line; those in it are not measured again, and each is added when done.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            "tune: needs a CUDA device, and torch sees none; `latte-fast doctor` says what this machine has"
        )
    if clips < 1:
        raise SystemExit(f"tune: clips must be at least 1, got {clips}")
    from latte_fast.kernels import measure_tiles

    device, kind = torch.device("cuda", torch.cuda.current_device()), getattr(torch, dtype)
    done = set(resume.read_text().splitlines()) if resume is not None and resume.is_file() else set()
    for name, measure in measurements(sizes, kind, clips, device):
        if name in done:
            continue
        found = measure()
        measure_tiles.save(found, device)  # minutes of compiling lie between two cases
        if resume is not None:
            with resume.open("a") as file:
                file.write(f"{name}\n")
        print(f"{name}: {len(found)} entries changed")
        for key, fields in sorted(found.items()):
            print(f"  {key:64} {', '.join(f'{field} {value}' for field, value in fields.items())}", flush=True)


def measurements(
    sizes: tuple[str, ...], dtype: torch.dtype, clips: int, device: torch.device
) -> Iterator[tuple[str, Callable[[], Entries]]]:
    """(name, what measures it) of every case: a size's tiles before the libraries that those tiles race."""
    from latte_fast.kernels import measure_tiles

    kind = str(dtype).removeprefix("torch.")
    for size in sizes:
        _, width, heads = SIZES[size]
        model = Sizes(clips, FRAMES, PATCHES, width, heads, device, dtype)
        for name, made in launches(model):
            yield f"{size} {kind} {clips} {name}", lambda made=made: measure_tiles.tune([made()])  # type: ignore[misc]
        attention = REGISTRY["axis_attention"]
        for name, args in (("space", attention.example(model)), *attention.more_examples(model)):
            for grad in (False, True):
                way = "backward" if grad else "forward"
                choice = partial(attention_choices, args["q"], args["k"], args["v"], grad, measure_tiles.milliseconds)
                yield f"{size} {kind} {clips} libraries, {name} {way}", choice
        if dtype in blas_lt.CODES and blas_lt.why_not_loaded() is None:
            for layer, product in products(width, clips * FRAMES * PATCHES, dtype):
                choice = partial(product_choices, product, device, measure_tiles.milliseconds)
                yield f"{size} {kind} {clips} {layer} {product.way}", choice
    yield f"{kind} conv_transpose3d", partial(cudnn_choices, CONVOLUTIONS, dtype, device, measure_tiles.milliseconds)


def cudnn_choices(
    cases: Iterable[tuple], dtype: torch.dtype, device: torch.device, timer: Callable[[Callable[[], Any]], float]
) -> Entries:
    """`conv_transpose3d/<shape>` -> whether cuDNN is faster, forward and backward together, where both can serve."""
    choices: Entries = {}
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
            choices[library_choice.convolution_key(x, w, stride)] = {"cudnn": int(times["cudnn"] < times["cuda"])}
    return choices


def attention_choices(
    q: Tensor, k: Tensor, v: Tensor, grad: bool, timer: Callable[[Callable[[], Any]], float]
) -> Entries:
    """`axis_attention/<shape>` -> the fastest backend over space, ours where none is 2 % faster."""
    if grad:
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    times = {}
    for backend in library_choice.CONTENDERS:
        if backends.why_not("axis_attention", backend, q, k, v, "space", None, 1.0, None):
            continue

        def step(backend: str = backend) -> Any:
            with torch.set_grad_enabled(grad), use_backend(axis_attention=backend):
                out = ops.axis_attention(q, k, v, "space")
            return torch.autograd.grad(out, (q, k, v), torch.ones_like(out)) if grad else out

        try:
            times[backend] = timer(step)
        except RuntimeError as error:  # a library that has no kernel for the shape after all
            print(f"  {backend} does not run: {str(error).splitlines()[0]}")
    if "triton" not in times:
        return {}
    fastest = min(times, key=times.__getitem__)
    kept = fastest if times[fastest] < 0.98 * times["triton"] else "triton"
    return {library_choice.attention_key(q, k, "space", grad): {"backend": kept}}


def launches(sizes: Sizes) -> Iterator[tuple[str, Callable[[], Callable[[], Any]]]]:
    """(name, what makes a launch) of the forward and backward of each op that Triton serves, on its examples."""
    for op in REGISTRY.values():
        if "triton" in backends.candidates(op.kernels):
            for name, args in ((op.name, op.example(sizes)), *op.more_examples(sizes)):
                # 8-bit numbers, which some GPUs do not have
                if sizes.device.type == "cuda" and backends.why_not(op.kernels, "triton", *args.values()):
                    continue
                function = getattr(ops, op.name)
                yield f"{name} forward", partial(partial, _forward, function, args)
                if op.backward:
                    yield f"{name} backward", partial(_backward, function, args)


def _forward(op: Callable[..., Any], args: dict[str, Any]) -> Any:
    with torch.no_grad(), use_backend("triton"):
        return op(**args)


def _backward(op: Callable[..., Any], args: dict[str, Any]) -> Callable[[], Any]:
    args = {name: a.detach().requires_grad_() if isinstance(a, Tensor) else a for name, a in args.items()}
    leaves = [a for a in args.values() if isinstance(a, Tensor)]
    with use_backend("triton"):
        out = op(**args)
    outs = out if isinstance(out, tuple) else (out,)
    dout = [torch.randn_like(o) for o in outs]
    return lambda: torch.autograd.grad(outs, leaves, dout, retain_graph=True)
