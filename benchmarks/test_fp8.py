"""8-bit inference: the ops that leave 8-bit rows, the model's four products in fp8, and whole forwards.

Without a GPU products are emulated: the suite runs there at tiny sizes to see that it runs, and its times mean nothing.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.clock import synchronise
from benchmarks.contenders import (
    FRAMES,
    SIDE,
    WIDTHS,
    affordable,
    compiled,
    device,
    flops,
    large,
    models,
    no_grad,
    op_clips,
    titled,
)
from benchmarks.gemm import LAYERS
from benchmarks.race import ceilings, race
from latte_fast import Replay, ops, quantize
from latte_fast.modules.linear8 import Linear8, product, rows8
from latte_fast.ops.registration import REGISTRY
from latte_fast.ops.sizes import Sizes
from latte_fast.reference import functional as R

PATCHES = (SIDE // 2) ** 2
# each 8-bit op beside the one in bf16 that it stands for
OPS = {
    "norm_modulate_fp8": "norm_modulate",
    "gate_residual_norm_modulate_fp8": "gate_residual_norm_modulate",
    "bias_gelu_fp8": "bias_gelu",
    "rows_fp8": "",
}


def share_lost(values: Tensor, scale: Tensor, exact: Tensor) -> float:
    """Returns the largest error as a share of the row's maximum; half a step at 448 is 1 / 28 of it."""
    error = (values.float() * scale - exact.float()).abs().amax(-1)
    return float((error / exact.float().abs().amax(-1).clamp_min(1e-30)).max())


@pytest.mark.parametrize("op", OPS)
def test_ops(op: str, compare: Any) -> None:
    torch.manual_seed(0)
    sizes = Sizes(op_clips(), FRAMES, PATCHES, *WIDTHS["XL"], device(), torch.bfloat16)
    args = REGISTRY[op].example(sizes)
    fn, ref, plain = getattr(ops, op), getattr(R, f"{op}_ref"), OPS[op]
    jit = compiled(ref)
    contenders: dict[str, Callable | str] = {"ours": no_grad(lambda: fn(**args))}
    if plain:
        contenders["the op in bf16"] = no_grad(lambda: getattr(ops, plain)(**args))
    with torch.no_grad():
        outs = fn(**args)
        contenders["torch.compile"] = tried(no_grad(lambda: jit(**args)))

    def check() -> None:
        # one clip's rows: the oracle in fp32 of all would take what memory there is
        few = {n: a[:1] if a.dim() > 1 else a for n, a in args.items()}
        with torch.no_grad():
            got = fn(**few)
            if plain:
                exact = getattr(R, f"{plain}_ref")(**{n: a.float() for n, a in few.items()})
                exact = exact[1] if isinstance(exact, tuple) else exact
            else:
                exact = few["x"]
        assert share_lost(got[-2], got[-1], exact) < 1 / 28 + 0.01

    moved = sum(t.numel() * t.element_size() for t in (*args.values(), *outs))
    clips = "" if op_clips() == 1 else f", {op_clips()} clips"
    laps = compare(f"{op}, XL/2, bf16{clips}", contenders, check, seconds=2.0, on_device=True, bytes=moved)
    share = moved / laps["ours"].median / ceilings()["copy"]
    print(f"{op}: {moved / 1e6:.1f} MB, {share:.0%} of the bytes that a copy moves in this time")


def ways(x: Tensor, w: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """x (M, K), w (N, K): the product in bf16, and in fp8 with scales a row or a tensor."""
    rows, layer = rows8(x), rows8(w)
    a, sa, c, sc = rows.values, rows.scale, layer.values, layer.scale.flatten()
    mm = partial(torch._scaled_mm, a, c.t(), out_dtype=torch.bfloat16)
    one = torch.ones((), device=x.device)
    out = x.new_empty(x.shape[0], w.shape[0])
    return {
        "bf16": lambda: torch.mm(x, w.t(), out=out),
        "bf16 with bias": lambda: torch.addmm(b, x, w.t(), out=out),
        "ours": lambda: product(rows, c, sc),
        "ours with bias": lambda: product(rows, c, sc, b),
        "fp8, scales a row, fast sums": lambda: mm(sa, sc[None], use_fast_accum=True),
        "fp8, scales a row, fast sums, bias": lambda: mm(sa, sc[None], bias=b, use_fast_accum=True),
        "fp8, scales a row, fp32 sums": lambda: mm(sa, sc[None], use_fast_accum=False),
        "fp8, scales a tensor, fast sums": lambda: mm(one, one, use_fast_accum=True),
        "fp8, scales a tensor, fp32 sums": lambda: mm(one, one, use_fast_accum=False),
        "ours, rounding x first": lambda: product(rows8(x), c, sc),
    }


def tried(run: Callable[[], Any], want: Tensor | None = None) -> Callable[[], Any] | str:
    """Returns a contender, or why this torch or device does not run it, or that its result is not `want`."""
    try:
        got = run()
        synchronise()
    except Exception as reason:
        return f"{type(reason).__name__}: {(str(reason).strip() or repr(reason)).splitlines()[0]}"
    if want is None:
        return run
    error = float((got.float() - want.float()).norm() / want.float().norm())
    return run if error < 0.08 else f"wrong by {error:.1%}"


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("clips", [pytest.param(1), large(8)])
def test_products(clips: int, layer: str, record: Any, benchmark: Any) -> None:
    torch.manual_seed(0)
    width, rows = WIDTHS["XL"][0], clips * FRAMES * PATCHES
    n, k = (times * width for times in LAYERS[layer])
    x, w, b = (torch.randn(shape, device=device()).bfloat16() for shape in ((rows, k), (n, k), (n,)))
    w /= k**0.5
    with torch.no_grad():
        wants = (x @ w.t(), torch.addmm(b, x, w.t()))
        # scales of 1 a tensor are there for their time: the result is that of other numbers
        found = {
            name: tried(run, None if "a tensor" in name else wants["bias" in name])
            for name, run in ways(x, w, b).items()
        }
        laps = race({name: no_grad(r) if callable(r) else r for name, r in found.items()}, 1.0, on_device=True)
    title = f"XL/2 {layer}, M = {rows}, N = {n}, K = {k}"
    for name, lap in laps.items():
        rate = f"{2 * rows * n * k / lap.median / 1e12:.1f} TFLOP/s" if not lap.reason else ""
        record(title, name, **lap.__dict__, flops=2 * rows * n * k, note=rate)
    benchmark.pedantic(lambda: None, rounds=1)


@torch.no_grad()
def distance(run: Callable[..., Tensor], exact: Tensor, inputs: tuple) -> str:
    got = run(*inputs).float()
    assert got.isfinite().all()
    return f"{float((got - exact).norm() / exact.norm()):.3%} from fp32"


def eight(model: nn.Module, *layers: str, precision: str = "fp8") -> nn.Module:
    model = copy.deepcopy(model)
    report = quantize(model, precision, layers=layers, keep=False)
    assert {type(model.get_submodule(name)) for name in report.taken} == {Linear8}, str(report)
    return model


@pytest.mark.parametrize("batch", [1, 8])
def test_forward(batch: int, record: Any, benchmark: Any) -> None:
    name = "Latte-XL/2"
    depth = affordable(name, batch)
    oracle, ours, inputs = models(name, torch.bfloat16, batch, depth)
    # one clip at a time: the oracle's fp32 scores of many would take what memory there is
    with torch.no_grad():
        wide = oracle.float()
        exact = torch.cat([wide(x.float(), t) for x, t in zip(*(i.split(1) for i in inputs), strict=True)])
        oracle.to(torch.bfloat16)
    contenders: dict[str, nn.Module] = {
        "ours": eight(ours, "qkv", "fc1", "fc2"),
        "bf16": ours,
        "fp8, proj too": eight(ours, "qkv", "proj", "fc1", "fc2"),
        "fp8, qkv alone": eight(ours, "qkv"),
        "fp8, MLP alone": eight(ours, "fc1", "fc2"),
    }
    runs: dict[str, Callable | str] = {}
    notes: dict[str, str] = {}
    for contender, model in contenders.items():
        for suffix, call in (("", Replay(model)), (", launch by launch", model)):
            if suffix and contender not in ("ours", "bf16"):
                continue
            try:
                notes[contender + suffix] = distance(call, exact, inputs)
                runs[contender + suffix] = no_grad(partial(call, *inputs))
            except Exception as error:
                runs[contender + suffix] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    laps = race(runs, seconds=8.0)
    title = f"{titled(name, depth, torch.bfloat16, batch)}, forward, replayed as a CUDA graph"
    for contender, lap in laps.items():
        fields = lap.__dict__ | {"note": notes.get(contender, "")}
        record(title, contender, **fields, flops=flops(name, batch, depth))
    assert not laps["ours"].reason, laps["ours"].reason
    benchmark.pedantic(lambda: None, rounds=1)
