"""Whole forwards, 16 x 256 x 256, against the oracle and the matrix products alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from benchmarks.contenders import (
    affordable,
    as_shipped,
    by_torch,
    compiled,
    compiled_blocks,
    flops,
    gated,
    large,
    model_gate,
    models,
    no_grad,
    products,
    sharing_weights,
    titled,
    with_sdpa,
)
from latte_fast import Replay

HALF, FULL = torch.bfloat16, torch.float32
CASES = [
    pytest.param("Latte-B/2", HALF, 1, marks=pytest.mark.quick),
    ("Latte-B/2", FULL, 1),
    ("Latte-XL/2", HALF, 1),
    large("Latte-XL/2", HALF, 8),
    *(pytest.param(f"Latte-{size}/2", HALF, 1, marks=pytest.mark.full) for size in ("S", "L")),
    *(pytest.param("Latte-XL/2", HALF, batch, marks=pytest.mark.full) for batch in (2, 32)),
    pytest.param("Latte-XL/2", FULL, 1, marks=pytest.mark.full),
]


def replay(
    oracle: nn.Module, ours: nn.Module, inputs: tuple, by: Callable[[Callable], Callable] = lambda run: run
) -> Callable[[], Any] | str:
    replayed = Replay(ours)
    return gated(by(model_gate(oracle, replayed, inputs)), by(no_grad(lambda: replayed(*inputs))))


def replayed_by_torch(oracle: nn.Module, ours: nn.Module, inputs: tuple) -> Callable[[], Any] | str:
    """Returns our model under torch.compile in one graph, or what its check failed for."""
    jit = compiled(sharing_weights(ours), mode="reduce-overhead", fullgraph=True, dynamic=False)

    def check() -> None:
        counters.clear()
        model_gate(oracle, jit, inputs)()
        skipped = counters["inductor"]["cudagraph_skips"]
        assert not skipped, f"{skipped} graphs are not replayed"

    return gated(check, no_grad(lambda: jit(*inputs)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="max-autotune and graphs are for a GPU")
@pytest.mark.parametrize(("name", "batch"), [("Latte-XL/2", 8), ("Latte-XL/2", 1), ("Latte-B/2", 1)])
def test_forward_beside_autotune(name: str, batch: int, compare: Any) -> None:
    """Apart from the others, as its compiler takes minutes; both replay CUDA graphs."""
    depth = affordable(name, batch)
    oracle, ours, inputs = models(name, HALF, batch, depth)
    tuned = torch.compile(oracle, mode="max-autotune")
    contenders: dict[str, Callable | str] = {
        "ours": no_grad(lambda: ours(*inputs)),
        "ours, replayed as a CUDA graph": replay(oracle, ours, inputs),
        "oracle under torch.compile, max-autotune": no_grad(lambda: tuned(*inputs)),
    }
    title = f"{titled(name, depth, HALF, batch)}, forward, beside max-autotune"
    compare(title, contenders, model_gate(oracle, ours, inputs), flops=flops(name, batch, depth))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU compiles the whole model in the race of all")
@pytest.mark.parametrize(("name", "batch"), [("Latte-XL/2", 8), ("Latte-XL/2", 1)])
def test_forward_beside_whole_graph(name: str, batch: int, compare: Any) -> None:
    """All blocks in one graph of torch.compile, which takes minutes."""
    depth = affordable(name, batch)
    oracle, ours, inputs = models(name, HALF, batch, depth)
    whole = with_sdpa(compiled(oracle))
    contenders: dict[str, Callable | str] = {
        "ours": no_grad(lambda: ours(*inputs)),
        "ours, replayed as a CUDA graph": replay(oracle, ours, inputs),
        "oracle with SDPA under torch.compile": no_grad(lambda: whole(*inputs)),
    }
    title = f"{titled(name, depth, HALF, batch)}, forward, beside one graph"
    compare(title, contenders, model_gate(oracle, ours, inputs), flops=flops(name, batch, depth))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="reduce-overhead replays CUDA graphs")
@pytest.mark.parametrize(("name", "batch"), [("Latte-XL/2", 1), ("Latte-XL/2", 8)])
def test_forward_reduce_overhead(name: str, batch: int, compare: Any) -> None:
    """Our model in one graph of torch.compile, which replays it: no break, and no reason not to capture it."""
    depth = affordable(name, batch)
    oracle, ours, inputs = models(name, HALF, batch, depth)
    contenders: dict[str, Callable | str] = {
        "ours": no_grad(lambda: ours(*inputs)),
        "ours, replayed as a CUDA graph": replay(oracle, ours, inputs),
        "ours, replayed, products by torch": replay(oracle, ours, inputs, by_torch),
        "ours under torch.compile, reduce-overhead": replayed_by_torch(oracle, ours, inputs),
    }
    title = f"{titled(name, depth, HALF, batch)}, forward, beside reduce-overhead"
    compare(title, contenders, model_gate(oracle, ours, inputs), flops=flops(name, batch, depth))


@pytest.mark.parametrize(("name", "dtype", "batch"), CASES, ids=str)
def test_forward(name: str, dtype: torch.dtype, batch: int, compare: Any) -> None:
    depth = affordable(name, batch)
    oracle, ours, inputs = models(name, dtype, batch, depth)
    sdpa = with_sdpa(oracle)
    contenders: dict[str, Callable | str] = {
        "ours": no_grad(lambda: ours(*inputs)),
        "matrix products alone": products(name, dtype, batch, depth),
        "oracle eager (upstream's code path)": no_grad(lambda: oracle(*inputs)),
        "oracle with SDPA": no_grad(lambda: sdpa(*inputs)),
    }
    if torch.cuda.is_available():
        by_block = with_sdpa(compiled_blocks(oracle))
        contenders["ours, replayed as a CUDA graph"] = replay(oracle, ours, inputs)
        contenders["oracle with SDPA, blocks under torch.compile"] = no_grad(lambda: by_block(*inputs))
        contenders["oracle in fp32 with TF32 (upstream as shipped)"] = as_shipped(oracle, inputs)
    else:
        jit = compiled(oracle)
        contenders["oracle under torch.compile"] = no_grad(lambda: jit(*inputs))
    title = f"{titled(name, depth, dtype, batch)}, forward"
    compare(title, contenders, model_gate(oracle, ours, inputs), seconds=10.0, flops=flops(name, batch, depth))
