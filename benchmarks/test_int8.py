"""int8 inference: the ops that leave integers, the model's products, and whole forwards, beside bf16 and fp8.

Where there is a GPU its times are taken. CUDA_VISIBLE_DEVICES= takes those of the CPU, whose products need VNNI or AMX:

taskset -c 0,1 env CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=2 python -m pytest benchmarks/test_int8.py --benchmark-only
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.contenders import (
    FRAMES,
    SIDE,
    WIDTHS,
    affordable,
    device,
    flops,
    models,
    no_grad,
    op_clips,
    titled,
)
from benchmarks.gemm import LAYERS
from benchmarks.race import race
from benchmarks.test_fp8 import distance, eight, share_lost, tried
from latte_fast import Replay, ops
from latte_fast.modules import linear8
from latte_fast.modules.linear8 import Linear8, rows8, unsigned
from latte_fast.ops import onednn
from latte_fast.ops.registration import REGISTRY
from latte_fast.ops.sizes import Sizes
from latte_fast.reference import functional as R

PATCHES = (SIDE // 2) ** 2
# sizes and clips; a GPU has no use for int8 in small models, nor a CPU the time for many clips
FORWARDS = (("XL", 1), ("XL", 8)) if torch.cuda.is_available() else (("XL", 1), ("B", 1))
PRODUCTS = FORWARDS[1:] if torch.cuda.is_available() else FORWARDS
OPS = {
    "norm_modulate_int8": "norm_modulate",
    "gate_residual_norm_modulate_int8": "gate_residual_norm_modulate",
    "bias_gelu_int8": "bias_gelu",
    "rows_int8": "",
}
# rows, columns, depth, warps, stages and programs of the Triton kernel's tiles
TILES = (
    (128, 256, 128, 8, 3, 0),
    (128, 128, 128, 8, 3, 0),
    (128, 256, 128, 8, 3, 1),
    (128, 256, 128, 8, 4, 1),
    (128, 128, 128, 8, 3, 2),
    (256, 128, 128, 8, 3, 1),
)


@pytest.mark.parametrize("op", OPS)
def test_ops(op: str, compare: Any) -> None:
    torch.manual_seed(0)
    sizes = Sizes(op_clips(), FRAMES, PATCHES, *WIDTHS["XL"], device(), torch.bfloat16)
    args, plain = REGISTRY[op].example(sizes), OPS[op]
    contenders: dict[str, Callable | str] = {"ours": no_grad(lambda: getattr(ops, op)(**args))}
    if plain:
        contenders["the op in bf16"] = no_grad(lambda: getattr(ops, plain)(**args))
    if torch.cuda.is_available():
        contenders["the op in fp8"] = no_grad(lambda: getattr(ops, op.replace("int8", "fp8"))(**args))
    with torch.no_grad():
        outs = getattr(ops, op)(**args)

    def check() -> None:
        few = {n: a[:1] if a.dim() > 1 else a for n, a in args.items()}
        with torch.no_grad():
            got = getattr(ops, op)(**few)
            exact = few["x"] if not plain else getattr(R, f"{plain}_ref")(**{n: a.float() for n, a in few.items()})
            exact = exact[1] if isinstance(exact, tuple) else exact
        assert share_lost(got[-2], got[-1], exact) < 0.5 / 127 + 2e-3

    moved = sum(t.numel() * t.element_size() for t in (*args.values(), *outs))
    clips = "" if op_clips() == 1 else f", {op_clips()} clips"
    compare(f"{op}, XL/2, bf16{clips}", contenders, check, seconds=2.0, on_device=True, bytes=moved)


def ways(x: Tensor, w: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """x (M, K), w (N, K): the product in bf16 and of integers; what is called alone leaves scales to another pass."""
    rows, (c, scale) = rows8(x, "int8"), ops.rows_int8(w)
    out = x.new_empty(x.shape[0], w.shape[0])
    a, sa, sc = rows.values, rows.scale, scale.flatten()
    signed = a if a.dtype == torch.int8 else (a.int() - 128).to(torch.int8)
    found: dict[str, Callable[[], Tensor]] = {
        "bf16": lambda: torch.mm(x, w.t(), out=out),
        "bf16 with bias": lambda: torch.addmm(b, x, w.t(), out=out),
        "sums alone, torch._int_mm": lambda: torch._int_mm(signed, c.t()),
    }
    if not x.is_cuda:
        packed = onednn.pack(c)
        return found | {
            "ours": lambda: onednn.linear(a, sa, packed, sc, None, torch.bfloat16),
            "ours with bias": lambda: onednn.linear(a, sa, packed, sc, b, torch.bfloat16),
            "sums alone, oneDNN": lambda: onednn.multiply(a, packed, sc, torch.bfloat16),
            "ours, rounding x first": lambda: onednn.linear(
                *ops.rows_int8(x, unsigned=unsigned()), packed, sc, None, x.dtype
            ),
        }
    from latte_fast.kernels import linear_int8

    def tiled(tile: linear_int8.Tile) -> Tensor:
        return linear_int8.linear_int8_fwd(a, sa, c, sc, None, torch.bfloat16, tile)

    tiles = {f"tile {' '.join(map(str, t))}": functools.partial(tiled, linear_int8.Tile(*t)) for t in TILES}
    eight_bits, weight = rows8(x), rows8(w)
    return found | {
        "ours": lambda: ops.linear_int8(a, sa, c, sc),
        "ours with bias": lambda: ops.linear_int8(a, sa, c, sc, b),
        "ours, rounding x first": lambda: ops.linear_int8(*ops.rows_int8(x), c, sc),
        "fp8": lambda: linear8.product(eight_bits, weight.values, weight.scale.flatten()),
        **tiles,
    }


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("size", "clips"), PRODUCTS)
def test_products(clips: int, size: str, layer: str, record: Any, benchmark: Any) -> None:
    torch.manual_seed(0)
    width, rows = WIDTHS[size][0], clips * FRAMES * PATCHES
    n, k = (times * width for times in LAYERS[layer])
    x, w, b = (torch.randn(shape, device=device()).bfloat16() for shape in ((rows, k), (n, k), (n,)))
    w /= k**0.5
    with torch.no_grad():
        wants = (x @ w.t(), torch.addmm(b, x, w.t()))
        found = {
            # what is called alone has the result of other scales
            name: tried(run, None if "alone" in name else wants["bias" in name])
            for name, run in ways(x, w, b).items()
        }
        laps = race({name: no_grad(r) if callable(r) else r for name, r in found.items()}, 1.0, on_device=True)
    title = f"{size}/2 {layer}, M = {rows}, N = {n}, K = {k}"
    for name, lap in laps.items():
        rate = f"{2 * rows * n * k / lap.median / 1e12:.2f} T/s" if not lap.reason else ""
        record(title, name, **lap.__dict__, flops=2 * rows * n * k, note=rate)
    assert not laps["ours"].reason, laps["ours"].reason
    benchmark.pedantic(lambda: None, rounds=1)


def weight_bytes(model: nn.Module) -> int:
    """Returns the bytes of a model's weights."""
    eights = [m for m in model.modules() if isinstance(m, Linear8)]
    packed = sum(m.in_features * m.out_features for m in eights if "weight" not in m._buffers)
    tables = (t for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None)
    return packed + sum(t.nbytes for t in {id(t): t for t in tables}.values())


def forwards(name: str, batch: int) -> tuple[dict[str, nn.Module], Tensor, tuple, int]:
    """Returns the contenders, the result in fp32, the inputs and the number of blocks."""
    depth = affordable(name, batch)
    oracle, ours, inputs = models(name, torch.bfloat16, batch, depth)
    with torch.no_grad():
        wide = oracle.float()
        exact = torch.cat([wide(x.float(), t) for x, t in zip(*(i.split(1) for i in inputs), strict=True)])
        oracle.to(torch.bfloat16)
    by_int8 = functools.partial(eight, ours, precision="int8")
    contenders = {
        "ours": by_int8("qkv", "fc1", "fc2"),
        "bf16": ours,
        "int8, proj too": by_int8("qkv", "proj", "fc1", "fc2"),
        "int8, qkv alone": by_int8("qkv"),
        "int8, MLP alone": by_int8("fc1", "fc2"),
    }
    if torch.cuda.is_available():
        contenders["fp8"] = eight(ours, "qkv", "fc1", "fc2")
    return contenders, exact, inputs, depth


@pytest.mark.parametrize(("name", "batch"), [(f"Latte-{size}/2", clips) for size, clips in FORWARDS])
def test_forward(batch: int, name: str, record: Any, benchmark: Any) -> None:
    contenders, exact, inputs, depth = forwards(name, batch)
    runs: dict[str, Callable | str] = {}
    notes: dict[str, str] = {}
    for contender, model in contenders.items():
        call = Replay(model) if torch.cuda.is_available() else model
        try:
            notes[contender] = f"{distance(call, exact, inputs)}, weights {weight_bytes(model) / 1e6:.0f} MB"
            runs[contender] = no_grad(functools.partial(call, *inputs))
        except Exception as error:
            runs[contender] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    laps = race(runs, seconds=12.0)
    replayed = ", replayed as a CUDA graph" if torch.cuda.is_available() else ""
    title = f"{titled(name, depth, torch.bfloat16, batch)}, forward{replayed}"
    for contender, lap in laps.items():
        record(title, contender, **lap.__dict__, note=notes.get(contender, ""), flops=flops(name, batch, depth))
    assert not laps["ours"].reason, laps["ours"].reason
    benchmark.pedantic(lambda: None, rounds=1)
