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
    by_torch,
    compiled,
    compiled_blocks,
    device,
    large,
    model_gate,
    models,
    products,
    titled,
    with_sdpa,
)
from latte_fast.cuda_graphs.step import StepReplay
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


class TrainersStep:
    """What `latte-fast train --precision bf16-weights [--graphs]` does with a batch that is on the device."""

    def __init__(self, model: nn.Module, x: Tensor, t: Tensor):
        self.x, self.t, self.noise = x.float(), t, torch.randn_like(x).float()
        self.diffusion = create_diffusion("", learn_sigma=True)
        self.model = copy.deepcopy(model)
        ranks = Ranks(device=device())
        self.learner = Learner(self.model, OptimConfig(clip=1.0), "none", ranks, "bf16-weights")

    def __call__(self, policy: str = "none", graphs: bool = False) -> Callable[[], None]:
        call = StepReplay(self.model) if graphs else self.learner.call

        def predict(noisy: Tensor, t: Tensor, **_: Any) -> Tensor:
            return call(noisy.to(HALF), t).float()

        def run() -> None:
            self.model.recompute = policy
            losses = self.diffusion.training_losses(predict, self.x, self.t, {}, self.noise)
            losses["loss"].mean().backward()
            self.learner.weights.take_gradients()
            self.learner.update(1, 1e-4, False)

        return run


def same_gradients(model: nn.Module, x: Tensor, t: Tensor) -> None:
    """Two replays, the second on another clip, give the gradients of the model called by itself, bit for bit."""
    replay = StepReplay(model)
    for clip in (x, x.flip(0)):
        dout = torch.randn(*x.shape[:2], 8, *x.shape[3:]).to(x)
        found = []
        for call in (replay, model):
            model.zero_grad()
            call(clip, t).backward(dout)
            found.append([p.grad for p in model.parameters()])
        for got, want in zip(*found, strict=True):
            assert (got is None) == (want is None) and (got is None or torch.equal(got, want))
    model.zero_grad()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are for a GPU")
@pytest.mark.parametrize("batch", [5, 16])
def test_trainers_step_as_graphs(batch: int, compare: Any) -> None:
    """Without the oracle, whose activations leave no room for the graphs'."""
    name = "Latte-XL/2"
    depth = affordable(name, batch, passes=3)
    oracle, ours, (x, t) = models(name, HALF, batch, depth, train=True)
    small = models(name, HALF, 2, 2, train=True)
    oracle.to("meta")
    steps = TrainersStep(ours, x, t)
    contenders = {"ours": steps(POLICY, graphs=True)} if batch == 16 else {"ours": steps(graphs=True)}
    if batch == 5:
        contenders |= {f"ours, recompute = {POLICY}": steps(POLICY, graphs=True)}
        contenders |= {"ours, products by torch": by_torch(steps(graphs=True))}
    policy = f", recompute = {POLICY}" if batch == 16 else ""
    title = f"{titled(name, depth, HALF, batch)}, the trainer's step as CUDA graphs{policy}"
    compare(title, contenders, lambda: same_gradients(small[1], *small[2]), seconds=8.0)


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
        trainers: TrainersStep(ours, x, t)(),
        eager: step(oracle, oracle),
        # forward, and the gradients of input and weight, of every linear layer: what a step cannot go below
        "matrix products alone": products(name, HALF, batch, depth, training=True),
    }
    by_block = "oracle with SDPA, blocks under torch.compile"
    contenders[by_block if torch.cuda.is_available() else "oracle under torch.compile"] = step(jit, oracle)
    each = {"ours": kept(ours, x, t), eager: kept(oracle, x, t)}
    ours.recompute = POLICY
    each[remade] = kept(ours, x, t)
    compare(f"{titled(name, depth, HALF, batch)}, training step", contenders, check, seconds=12.0, each=each)
