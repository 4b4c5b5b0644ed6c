"""A training step: forward, backward and AdamW on bf16 weights, and what the forward keeps for the backward."""

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.bytes import kept_bytes
from benchmarks.contenders import affordable, compiled, large, model_gate, models, titled

HALF = torch.bfloat16
# the recompute policy that is timed: norms and GELU are computed again, matrix products and attention are kept
POLICY = "elementwise"

CASES = [
    ("Latte-B/2", 1),
    large("Latte-XL/2", 5),
    *(pytest.param("Latte-XL/2", batch, marks=pytest.mark.full) for batch in (1, 16)),
]


def kept(model: nn.Module, *args: Any) -> dict[str, int]:
    """Returns kept_bytes of a row; nothing where a forward does not fit the GPU's memory, as its race will say."""
    try:
        return {"kept_bytes": kept_bytes(model, *args)}
    except torch.OutOfMemoryError:
        return {}


@pytest.mark.parametrize(("name", "batch"), CASES)
def test_training_step(name: str, batch: int, compare: Any) -> None:
    depth = affordable(name, batch, passes=3)
    oracle, ours, (x, t) = models(name, HALF, batch, depth, train=True)
    dout = torch.randn(batch, x.shape[1], 8, *x.shape[3:]).to(x)

    def step(model: nn.Module, owner: nn.Module, policy: str = "none") -> Any:
        optimizer = torch.optim.AdamW(owner.parameters(), lr=1e-5, fused=True)

        def run() -> None:
            ours.recompute = policy
            optimizer.zero_grad()
            model(x, t).backward(dout)
            optimizer.step()

        return run

    check = model_gate(oracle, ours, (x, t))
    jit = compiled(oracle)
    remade = f"ours, recompute = {POLICY}"
    eager = "oracle eager (upstream's code path)"
    contenders = {
        "ours": step(ours, ours),
        remade: step(ours, ours, POLICY),
        eager: step(oracle, oracle),
        "oracle under torch.compile": step(jit, oracle),
    }
    each = {"ours": kept(ours, x, t), eager: kept(oracle, x, t)}
    ours.recompute = POLICY
    each[remade] = kept(ours, x, t)
    compare(f"{titled(name, depth, HALF, batch)}, training step", contenders, check, seconds=12.0, each=each)
