"""A training step: forward, backward and AdamW on bf16 weights, and what the forward keeps for the backward.

The trainer's own step has the loss, a master in fp32, clipping and the weights' average on top; its loader is left out.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bytes import kept_bytes
from benchmarks.contenders import (
    affordable,
    compiled,
    compiled_blocks,
    device,
    large,
    model_gate,
    models,
    titled,
    with_sdpa,
)
from latte_fast.diffusion import create_diffusion
from latte_fast.distributed.ranks import Ranks
from latte_fast.runs.config import OptimConfig
from latte_fast.training.learner import Learner

HALF = torch.bfloat16
# the recompute policy that is timed: norms and GELU are computed again, matrix products and attention are kept
POLICY = "elementwise"

CASES = [
    ("Latte-B/2", 1),
    large("Latte-XL/2", 5),
    pytest.param("Latte-XL/2", 1, marks=pytest.mark.full),
]


def kept(model: nn.Module, *args: Any) -> dict[str, int]:
    """Returns kept_bytes of a row; nothing where a forward does not fit the GPU's memory, as its race will say."""
    try:
        return {"kept_bytes": kept_bytes(model, *args)}
    except torch.OutOfMemoryError:
        return {}


def trainers_step(model: nn.Module, x: Tensor, t: Tensor, policy: str = "none") -> Callable[[], None]:
    """Returns what `latte-fast train --precision bf16-weights` does with a batch that is on the device."""
    model = copy.deepcopy(model)
    model.recompute = policy
    ranks = Ranks(device=device())
    learner = Learner(model, OptimConfig(clip=1.0), "none", ranks, "bf16-weights")
    diffusion, noise = create_diffusion("", learn_sigma=True), torch.randn_like(x)

    def predict(noisy: Tensor, t: Tensor, **_: Any) -> Tensor:
        return learner.call(noisy.to(HALF), t).float()

    def run() -> None:
        diffusion.training_losses(predict, x.float(), t, {}, noise.float())["loss"].mean().backward()
        learner.weights.take_gradients()
        learner.update(1, 1e-4, False)

    return run


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU has no time for sixteen clips")
def test_large_batch(compare: Any) -> None:
    """Sixteen clips in 80 GB, with norms and GELU computed again; the oracle has no room for them."""
    name, batch = "Latte-XL/2", 16
    depth = affordable(name, batch, passes=3)
    oracle, ours, (x, t) = models(name, HALF, batch, depth, train=True)
    check = model_gate(oracle, ours, (x[:1], t[:1]))
    contenders = {"ours": trainers_step(ours, x, t, POLICY)}
    compare(f"{titled(name, depth, HALF, batch)}, the trainer's step, recompute = {POLICY}", contenders, check)


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
    jit = with_sdpa(compiled_blocks(oracle)) if torch.cuda.is_available() else compiled(oracle)
    trainers = "ours, the trainer's step"
    remade = f"ours, recompute = {POLICY}"
    eager = "oracle eager (upstream's code path)"
    contenders = {
        "ours": step(ours, ours),
        remade: step(ours, ours, POLICY),
        trainers: trainers_step(ours, x, t),
        eager: step(oracle, oracle),
    }
    by_block = "oracle with SDPA, blocks under torch.compile"
    contenders[by_block if torch.cuda.is_available() else "oracle under torch.compile"] = step(jit, oracle)
    each = {"ours": kept(ours, x, t), eager: kept(oracle, x, t)}
    ours.recompute = POLICY
    each[remade] = kept(ours, x, t)
    compare(f"{titled(name, depth, HALF, batch)}, training step", contenders, check, seconds=12.0, each=each)
