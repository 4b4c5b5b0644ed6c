"""The GEMM table's products are those of the layers they are named for."""

import pytest
import torch

from benchmarks import gemm


@pytest.mark.parametrize("layer", list(gemm.LAYERS))
def test_products_have_the_layers_shapes(layer: str) -> None:
    n, k = (8 * times for times in gemm.LAYERS[layer])
    found = {way: run() for way, run in gemm.products(layer, 8, 6).items()}
    assert {way: tuple(out.shape) for way, out in found.items()} == {
        "forward": (6, n),
        "forward with bias": (6, n),
        "dgrad": (6, k),
        "wgrad": (n, k),
    }
    assert all(out.isfinite().all() and out.abs().max() > 0 for out in found.values())


def test_layers_are_a_blocks() -> None:
    """24 D^2 flops a token, as `contenders.flops` has it."""
    assert sum(2 * n * k for n, k in gemm.LAYERS.values()) == 24


def test_the_preferred_library_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", lambda name=None: asked.append(name) or "cublas")
    assert gemm.by("cublaslt", lambda: len(asked)) == 2
    assert asked == [None, "cublaslt", "cublas"]
