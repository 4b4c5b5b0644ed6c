"""Which backend attends: ours, or the library that a GPU's table names for a shape, where it still serves."""

import importlib

import pytest
import torch

from latte_fast import backends, use_backend
from latte_fast.kernels import library_choice, tiles

op = importlib.import_module("latte_fast.ops.axis_attention")  # the package's attribute is the function
SHAPE = "axis_attention/space-1024x1024-K72-bfloat16"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What a GPU's file holds, on a machine where Triton and SDPA serve every call."""
    stored: dict[str, dict] = {"flash_attention_fwd/T256-K72-bf16": {"stages": 2}}
    monkeypatch.setattr(tiles, "gpu_of", lambda device: tiles.Gpu("some gpu", 132, 9))
    monkeypatch.setattr(tiles, "measured", lambda gpu: stored)
    served = {"triton": lambda *a: None, "sdpa": lambda *a: None, "cudnn": lambda *a: "switched off"}
    monkeypatch.setitem(backends._probes, "axis_attention", served)
    return stored


def choose(patches: int = 1024, axis: str = "space", grad: bool = False) -> str:
    q = torch.empty(1, 2, patches, 1, 72, device="meta", dtype=torch.bfloat16, requires_grad=grad)
    return op.choose(q, q, q, axis, None, 0.1, None)


def test_a_library_serves_the_shapes_it_was_measured_faster_on(table: dict) -> None:
    assert choose() == "triton"
    table[SHAPE] = {"backend": "sdpa"}
    assert choose() == "sdpa"
    assert [choose(256), choose(axis="time"), choose(grad=True)] == ["triton"] * 3
    table[f"{SHAPE}-grad"] = {"backend": "sdpa"}
    assert choose(grad=True) == "sdpa"
    with torch.no_grad():
        assert choose(grad=True) == "sdpa"
        table[SHAPE] = {"backend": "triton"}
        assert choose(grad=True) == "triton"


def test_who_asks_by_name_or_for_fixed_sums_gets_ours(table: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    table[SHAPE] = {"backend": "sdpa"}
    monkeypatch.setattr(backends, "_forced", {"axis_attention": "triton"})
    assert choose() == "triton"
    monkeypatch.setattr(backends, "_forced", {})
    torch.use_deterministic_algorithms(True)
    try:
        assert choose() == "triton"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_library_that_no_longer_serves_leaves_the_call_to_ours(table: dict) -> None:
    table[SHAPE] = {"backend": "cudnn"}
    assert choose() == "triton"


def test_without_a_table_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 2, 40, 1, 64)
    with use_backend("reference"):
        assert op.choose(q, q, q, "space", None, 0.1, None) == "reference"


def test_keys_name_what_a_measurement_depends_on() -> None:
    q, k = torch.empty(2, 3, 5, 1, 64), torch.empty(2, 3, 7, 1, 64)
    assert library_choice.attention_key(q, k, "space", False) == "axis_attention/space-5x7-K64-float32"
    assert library_choice.attention_key(q, q, "time", True) == "axis_attention/time-3x3-K64-float32-grad"
