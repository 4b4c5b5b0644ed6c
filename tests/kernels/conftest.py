"""The Triton kernels run on the GPU where there is one, else interpreted, which they settle when first imported."""

import math

import pytest
import torch

from latte_fast import use_backend
from latte_fast.testing import poisoned_empty

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytest.importorskip("triton", reason="triton is not installed; run `pip install triton`")
if DEVICE == "cpu":
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import latte_fast.kernels.axis_attention
        import latte_fast.kernels.bias_gelu
        import latte_fast.kernels.gate_residual
        import latte_fast.kernels.gate_residual_norm_modulate
        import latte_fast.kernels.norm_modulate  # noqa: F401


@pytest.fixture(autouse=True)
def on_triton(request, monkeypatch):
    """Every op of these tests runs on Triton or raises; outputs start as NaN, and nothing is written beside them."""
    if "compile_ahead" in request.node.nodeid:
        yield
        return
    from latte_fast.kernels import rows

    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    empty, margin, buffers = rows.empty, 64, []

    def with_margins(shape, dtype, device):
        size = math.prod(shape)
        buffer = empty((size + 2 * margin,), dtype, device).fill_(-77)
        buffers.append((buffer, size))
        return buffer[margin : margin + size].fill_(math.nan).view(shape)

    monkeypatch.setattr(rows, "empty", with_margins)
    with use_backend("triton"), poisoned_empty():
        yield
    for buffer, size in buffers:
        assert (buffer[:margin] == -77).all() and (buffer[margin + size :] == -77).all(), "written outside an output"


def pytest_collection_modifyitems(items):
    """On a CUDA machine these are the tests that `make test-cuda` runs."""
    if DEVICE == "cuda":
        for item in items:
            if "tests/kernels" in item.nodeid:
                item.add_marker(pytest.mark.cuda)
