"""The Triton kernels run on the GPU where there is one, else interpreted, which they settle when first imported."""

import importlib.util
import math

import numpy
import pytest
import torch
from numpy.lib import NumpyVersion

from latte_fast import use_backend
from tests.helpers.guards import poisoned_empty

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def why_not() -> str | None:
    """Why the kernels can't run here."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; run `pip install triton`"
    import triton

    old = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)
    if DEVICE == "cpu" and old and NumpyVersion(numpy.__version__) >= "2.4.0":
        both = f"Triton {triton.__version__} interprets with NumPy before 2.4, this is {numpy.__version__}"
        return f"{both}: pip install 'numpy<2.4'"
    return None


if DEVICE == "cpu" and not why_not():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import latte_fast.kernels.adamw_ema
        import latte_fast.kernels.axis_attention
        import latte_fast.kernels.bias_gelu
        import latte_fast.kernels.bias_gelu_fp8
        import latte_fast.kernels.causal_attention
        import latte_fast.kernels.decode_attention
        import latte_fast.kernels.gate_residual
        import latte_fast.kernels.gate_residual_norm_modulate
        import latte_fast.kernels.gate_residual_norm_modulate_fp8
        import latte_fast.kernels.int8
        import latte_fast.kernels.linear_int8
        import latte_fast.kernels.nearest_code
        import latte_fast.kernels.norm_modulate
        import latte_fast.kernels.norm_modulate_fp8
        import latte_fast.kernels.norm_silu_halo
        import latte_fast.kernels.pooled_norm
        import latte_fast.kernels.rows_fp8
        import latte_fast.kernels.small_linear  # noqa: F401


@pytest.fixture(autouse=True)
def on_triton(request, monkeypatch):
    """Every op of these tests runs on Triton or raises; outputs start as NaN or -128, and none is exceeded."""
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
        start = math.nan if dtype.is_floating_point else -128  # which no op writes
        return buffer[margin : margin + size].fill_(start).view(shape)

    monkeypatch.setattr(rows, "empty", with_margins)
    with use_backend("triton"), poisoned_empty():
        yield
    for buffer, size in buffers:
        wide = buffer.float()
        near = [(part + 77).abs() <= 5 for part in (wide[:margin], wide[margin + size :])]  # -77 is -80 in 8 bits
        assert near[0].all() and near[1].all(), "written outside an output"


class Skipped(pytest.Module):
    """A file of tests that can't even be imported here, skipped with the reason."""

    def collect(self):
        pytest.skip(why_not(), allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if why_not() and module_path.stem != "test_compile_ahead":
        return Skipped.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items):
    """On a CUDA machine these are the tests that `make test-cuda` runs."""
    if DEVICE == "cuda":
        for item in items:
            if "tests/kernels" in item.nodeid:
                item.add_marker(pytest.mark.cuda)
