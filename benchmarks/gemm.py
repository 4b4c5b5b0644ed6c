"""The model's own matrix products: a layer's result and its two gradients, by one library or the other."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.contenders import device

# layer -> (outputs, inputs) in widths
LAYERS = {"qkv": (3, 1), "proj": (1, 1), "fc1": (4, 1), "fc2": (1, 4)}


def products(layer: str, width: int, rows: int) -> dict[str, Callable[[], Tensor]]:
    """x (M, K), w (N, K): the layer's result, its two gradients, and the result with bias and GELU in the epilogue."""
    n, k = (size * width for size in LAYERS[layer])

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device()).bfloat16()

    x, w, b, dy = normal(rows, k), normal(n, k) / k**0.5, normal(n), normal(rows, n)
    y, dx, dw = (torch.empty_like(t) for t in (dy, x, w))
    found: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: torch.mm(x, w.t(), out=y),
        "forward with bias": lambda: torch.addmm(b, x, w.t(), out=y),
        "dgrad": lambda: torch.mm(dy, w, out=dx),
        "wgrad": lambda: torch.mm(dy.t(), x, out=dw),
    }
    if layer == "fc1" and torch.cuda.is_available():  # on the CPU it is the other GELU
        found["forward with bias and GELU"] = lambda: torch._addmm_activation(b, x, w.t(), use_gelu=True)
    return found


@contextlib.contextmanager
def preferred(library: str) -> Iterator[None]:
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(library)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def by(library: str, run: Callable[[], Tensor]) -> Tensor:
    with preferred(library):
        return run()
