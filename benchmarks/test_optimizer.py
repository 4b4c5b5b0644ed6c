"""AdamW's step, the average of the weights and their bf16 copies: one pass over a model's weights, or torch's three.

A weight of an fp32 master with its gradient, two moments and average takes 38 bytes of reading and writing; torch's
three passes move 46. Rates are by the 38, whoever runs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import device, large
from latte_fast import Latte
from latte_fast.config import PRESETS
from latte_fast.optimizers.adamw_ema import AdamWEma

BYTES = 38
DECAY = 0.999
SETTINGS: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.01}
# what both round last: a weight's step, its average, its copy
ULPS = 2


class State(NamedTuple):
    weights: list[Tensor]
    averages: list[Tensor]
    copies: list[Tensor]


def state(shapes: list[torch.Size]) -> State:
    """Draws weights with gradients, and makes averages and copies of them."""
    torch.manual_seed(0)
    weights = [torch.randn(s, device=device()).requires_grad_() for s in shapes]
    for w in weights:
        w.grad = torch.randn_like(w)
    return State(weights, [w.detach().clone() for w in weights], [w.detach().bfloat16() for w in weights])


def one_pass(s: State) -> Callable[[], None]:
    averages = dict(zip(s.weights, s.averages, strict=True))
    optimizer = AdamWEma(s.weights, averages, dict(zip(s.weights, s.copies, strict=True)), fused=True, **SETTINGS)
    optimizer.decay = DECAY
    assert optimizer.why_not() is None, optimizer.why_not()
    return optimizer.step


def three_passes(s: State, **how: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(s.weights, **how, **SETTINGS)

    @torch.no_grad()
    def run() -> None:
        optimizer.step()
        torch._foreach_lerp_(s.averages, s.weights, 1 - DECAY)
        torch._foreach_copy_(s.copies, s.weights)

    return run


def gate() -> None:
    """Two steps of either give the same numbers, up to what fused multiply-adds round."""
    shapes = [torch.Size(s) for s in ((1000, 33), (7,), (129, 64))]
    ours, theirs = state(shapes), state(shapes)
    for run in (one_pass(ours), three_passes(theirs, fused=True)):
        run()
        run()
    for name, got, want in zip(State._fields, ours, theirs, strict=True):
        for x, y in zip(got, want, strict=True):
            limit = ULPS * torch.finfo(y.dtype).eps * y.detach().float().abs().clamp(min=1e-3)
            assert ((x.detach().float() - y.detach().float()).abs() <= limit).all(), f"{name} differ"


def launches(run: Callable[[], None]) -> str:
    """Returns the number of kernels and copies of a call on a GPU, for a row's note."""
    if not torch.cuda.is_available():
        return ""
    run()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        run()
        torch.cuda.synchronize()
    kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return f"{len(kernels)} launches"


@pytest.mark.parametrize("name", [large("Latte-XL/2"), "Latte-B/2"])
def test_optimizer_step(name: str, compare: Any) -> None:
    with torch.device("meta"):
        shapes = [p.shape for p in Latte(**PRESETS[name]).parameters() if p.requires_grad]
    s = state(shapes)
    contenders = {
        "ours": one_pass(s),
        "torch's fused AdamW, lerp, copy": three_passes(s, fused=True),
        "torch's foreach AdamW, lerp, copy": three_passes(s, foreach=True),
    }
    values = sum(w.numel() for w in s.weights)
    each = {name: {"note": launches(run)} for name, run in contenders.items()}
    title = f"{name}, {values / 1e6:.0f} M weights in {len(s.weights)} tensors, optimizer step"
    compare(title, contenders, gate, on_device=True, bytes=BYTES * values, each=each)
