"""Whole forwards and training steps, one clip of 16 x 256 x 256, against the oracle and the matrix products alone."""

from typing import Any

import pytest
import torch

from benchmarks.contenders import compiled, models, no_grad, products
from latte_fast import testing

HALF, FULL = torch.bfloat16, torch.float32


def gate(oracle: torch.nn.Module, ours: torch.nn.Module, inputs: tuple) -> Any:
    @torch.no_grad()
    def check() -> None:
        got, same = ours(*inputs), oracle(*inputs)
        dtype = inputs[0].dtype
        if dtype == FULL:
            assert testing.relative_error(got, same) <= 6e-6  # each is within 3e-6 of float64
            return
        exact = oracle.float()(inputs[0].float(), inputs[1])
        oracle.to(dtype)
        testing.assert_no_worse_than_torch("output", got, same, exact)

    return check


@pytest.mark.parametrize(("name", "dtype"), [("Latte-B/2", HALF), ("Latte-B/2", FULL), ("Latte-XL/2", HALF)], ids=str)
def test_forward(name: str, dtype: torch.dtype, compare: Any) -> None:
    oracle, ours, inputs = models(name, dtype, batch=1)
    jit = compiled(oracle)
    contenders = {
        "ours": no_grad(lambda: ours(*inputs)),
        "matrix products alone": products(name, dtype, batch=1),
        "oracle eager (upstream's code path)": no_grad(lambda: oracle(*inputs)),
        "oracle under torch.compile": no_grad(lambda: jit(*inputs)),
    }
    title = f"{name}, {str(dtype).removeprefix('torch.')}, forward"
    compare(title, contenders, gate(oracle, ours, inputs), seconds=30.0)


@pytest.mark.parametrize("name", ["Latte-B/2"])
def test_training_step(name: str, compare: Any) -> None:
    """Forward, backward and AdamW on bf16 weights."""
    oracle, ours, (x, t) = models(name, HALF, batch=1, train=True)
    dout = torch.randn(1, 16, 8, 32, 32).to(x)

    def step(model: torch.nn.Module, owner: torch.nn.Module) -> Any:
        optimizer = torch.optim.AdamW(owner.parameters(), lr=1e-5, fused=True)

        def run() -> None:
            optimizer.zero_grad()
            model(x, t).backward(dout)
            optimizer.step()

        return run

    check = gate(oracle, ours, (x, t))
    jit = compiled(oracle)
    contenders = {
        "ours": step(ours, ours),
        "oracle eager (upstream's code path)": step(oracle, oracle),
        "oracle under torch.compile": step(jit, oracle),
    }
    compare(f"{name}, bfloat16, training step", contenders, check, seconds=40.0)
