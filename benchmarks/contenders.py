"""Who races: the oracle eager (upstream's code path) and compiled, the matrix products alone, and ours."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast import Latte_models, reference, testing
from latte_fast.config import PRESETS


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def no_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(run)


@functools.lru_cache(maxsize=1)
def models(name: str, dtype: torch.dtype, batch: int, train: bool = False) -> tuple[nn.Module, nn.Module, tuple]:
    """(oracle, ours, inputs) with the same refilled weights; 16 frames of 256 x 256 pixels."""
    torch.manual_seed(0)
    oracle = testing.refill(reference.latte.Latte_models[name]())
    ours = Latte_models[name]()
    ours.load_state_dict(oracle.state_dict())
    x = torch.randn(batch, 16, 4, 32, 32).to(device(), dtype)
    t = torch.randint(0, 1000, (batch,)).to(device())
    return oracle.to(device(), dtype).train(train), ours.to(device(), dtype).train(train), (x, t)


def products(name: str, dtype: torch.dtype, batch: int) -> Callable[[], None]:
    """The four linear layers of every block without their bias, results in reused buffers: the floor of a forward."""
    d, tokens = PRESETS[name]["hidden_size"], batch * 16 * (32 // PRESETS[name]["patch_size"]) ** 2

    def rows(n: int) -> Tensor:
        return torch.randn(tokens, n, device=device()).to(dtype)

    x, wide = rows(d), rows(4 * d)
    layers = [(x, 3 * d), (x, d), (x, 4 * d), (wide, d)]
    weights = [torch.randn(n, i.shape[1], device=device()).to(dtype) / i.shape[1] ** 0.5 for i, n in layers]
    outs = [rows(n) for _, n in layers]

    def run() -> None:
        for _ in range(PRESETS[name]["depth"]):
            for (i, _), w, out in zip(layers, weights, outs, strict=True):
                torch.mm(i, w.t(), out=out)

    return no_grad(run)


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(model, **options)
