"""The forward of one space and one time block at each preset's width."""

from typing import Any

import pytest
import torch

from benchmarks.contenders import compiled, model_gate, models, no_grad, products
from latte_fast.config import PRESETS

CASES = [
    pytest.param("Latte-S/2", marks=pytest.mark.quick),
    *(pytest.param(f"Latte-{size}/2", marks=pytest.mark.full) for size in ("B", "L", "XL")),
]


@pytest.mark.parametrize("name", CASES)
def test_pair(name: str, compare: Any) -> None:
    oracle, ours, inputs = models(name, torch.bfloat16, 1, 2)
    jit = compiled(oracle)
    contenders = {
        "ours": no_grad(lambda: ours(*inputs)),
        "matrix products alone": products(name, torch.bfloat16, 1, 2),
        "oracle eager (upstream's code path)": no_grad(lambda: oracle(*inputs)),
        "oracle under torch.compile": no_grad(lambda: jit(*inputs)),
    }
    title = f"{name}, a space and a time block of width {PRESETS[name]['hidden_size']}, with patches and head"
    compare(title, contenders, model_gate(oracle, ours, inputs), seconds=8.0)
