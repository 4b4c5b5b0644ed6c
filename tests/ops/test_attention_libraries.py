"""Optional attention libraries: which one serves, and why another can't, without one of them or a GPU."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from latte_fast.kernels import attention_libraries as libraries
from latte_fast.reference.functional import axis_attention_ref

WORKS = "def flash_attn_func(*args, softmax_scale): return args[0]"
ATTENDS = """
from torch.nn.functional import scaled_dot_product_attention

def attend(q, k, v, scale):
    assert all(x.stride(-1) == 1 and x.dim() == 4 for x in (q, k, v))
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=scale).transpose(1, 2)
"""
BROKEN = "raise ImportError('undefined symbol: _ZN3c10\\n in x.so')"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that go before those of the machine, forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith(("flash_attn", "xformers"))]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    libraries._function.cache_clear()
    yield tmp_path
    libraries._function.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith(("flash_attn", "xformers")):
            del sys.modules[name]


def put(site: Path, **modules: str) -> None:
    for name, text in modules.items():
        folder = site / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(text + "\n")


def why_not(name: str) -> str | None:
    with FakeTensorMode():
        q = torch.empty(2, 4, 16, 3, 64, dtype=torch.bfloat16, device="cuda")
        probe = {"flash_attn": libraries.why_not_flash_attn, "xformers": libraries.why_not_xformers}[name]
        return probe(q, q, q, "space", None, 0.125, None)


def test_absent(site: Path) -> None:
    if not any(importlib.util.find_spec(name) for name in ("flash_attn", "flash_attn_interface")):
        assert why_not("flash_attn") == "flash_attn is not installed; run `pip install flash-attn`"
    if not importlib.util.find_spec("xformers"):
        assert why_not("xformers") == "xformers is not installed; run `pip install xformers`"


def test_broken_is_a_sentence(site: Path) -> None:
    """A wheel built for another torch is what most machines have after torch was updated."""
    put(site, flash_attn=BROKEN, flash_attn_interface=BROKEN, xformers="", xformers__ops=BROKEN)
    for name, module in (("flash_attn", "flash_attn"), ("xformers", "xformers.ops")):
        reason = why_not(name)
        assert reason is not None and "\n" not in reason
        assert f"{module} does not import: undefined symbol: _ZN3c10 in x.so" in reason


def test_newest_that_imports_serves(site: Path) -> None:
    """Generation 4's files without what they need leave generation 2 to serve."""
    put(site, flash_attn=WORKS, flash_attn__cute="import a_dependency_left_out", flash_attn_interface=BROKEN)
    assert why_not("flash_attn") is None
    q = torch.randn(2, 4, 16, 3, 64)
    assert torch.equal(libraries.flash_attn(q, q, q, "space", 0.125), q.flatten(-2))
    assert libraries._function(*libraries.FLASH_ATTN)[0].__module__ == "flash_attn"


@pytest.mark.parametrize("name", ["flash_attn", "flash_attn_4", "xformers"])
@pytest.mark.parametrize(("axis", "batch"), [("space", 2), ("time", 1)])
def test_each_is_called_as_it_wants(site: Path, name: str, axis: str, batch: int) -> None:
    """(batch, length, H, K) views and a scale by its own keyword; newer generations give the log-sum-exp too."""
    flash = "def flash_attn_func(q, k, v, *, softmax_scale): return attend(q, k, v, softmax_scale)"
    newer = "def flash_attn_func(q, k, v, *, softmax_scale): return attend(q, k, v, softmax_scale), None"
    memory = "def memory_efficient_attention(q, k, v, *, scale): return attend(q, k, v, scale)"
    put(site, flash_attn=ATTENDS + flash, xformers="", xformers__ops=ATTENDS + memory)
    if name == "flash_attn_4":
        put(site, flash_attn__cute=ATTENDS + newer)
    q, k, v = (torch.randn(batch, 3, 5, 2, 8) for _ in range(3))
    k, v = (k, v) if axis == "time" else (torch.randn(batch, 3, 7, 2, 8) for _ in range(2))
    got = libraries.LIBRARIES[name.removesuffix("_4")](q, k, v, axis, 0.4)
    torch.testing.assert_close(got, axis_attention_ref(q, k, v, axis, None, 0.4, None))


def cuda(*shape: int, dtype: torch.dtype = torch.bfloat16, skipped: int = 0) -> torch.Tensor:
    """A fake (B, F, N, H, K), behind each clip of which as many frames are passed over."""
    batch, frames, *rest = shape
    strides = torch.empty(batch, frames + skipped, *rest, device="meta").stride()
    return torch.empty_strided(shape, strides, dtype=dtype, device="cuda")


UNFIT = {
    "fp32": (lambda: cuda(1, 4, 16, 3, 64, dtype=torch.float32), {}, "takes bf16 and fp16, got torch.float32"),
    "wide": (lambda: cuda(1, 4, 16, 3, 264), {}, "takes a head width up to 256, got 264"),
    "empty": (lambda: cuda(0, 4, 16, 3, 64), {}, "an empty batch"),
    "rope": (lambda: cuda(1, 4, 16, 3, 64), {"rope": (1, 1)}, "rotary embedding is not fused there"),
    "mask": (lambda: cuda(1, 4, 16, 3, 64), {"key_mask": 1}, "a query without a key would give NaN there, not 0"),
    "copy": (lambda: cuda(2, 4, 16, 3, 64), {"axis": "time"}, "batch strides do not merge on the time axis"),
    "joint": (lambda: cuda(2, 4, 16, 3, 64, skipped=2), {}, "batch strides do not merge on the space axis"),
    "space batch": (lambda: cuda(16384, 4, 2, 1, 8), {}, "batch 65536 is above 65535"),
    "time batch": (lambda: cuda(1, 4, 65536, 1, 8), {"axis": "time"}, "batch 65536 is above 65535"),
    "cpu": (lambda: torch.empty(1, 4, 16, 3, 64), {}, "needs a CUDA tensor, got one on cpu"),
}


@pytest.mark.parametrize("case", list(UNFIT))
def test_what_one_cannot_take_is_a_sentence(site: Path, case: str) -> None:
    put(site, flash_attn=WORKS)
    build, given, message = UNFIT[case]
    given = {"axis": "space", "rope": None, "scale": 0.1, "key_mask": None} | given
    with FakeTensorMode():
        q = build()
        reason = libraries.why_not_flash_attn(q, q, q, **given)
        assert reason is not None and message in reason
        if case not in ("fp32", "wide", "cpu"):
            assert message in str(libraries.why_not_sdpa(q, q, q, **given))


def test_the_largest_batch_fits(site: Path) -> None:
    put(site, flash_attn=WORKS)
    with FakeTensorMode():
        for q, axis in ((cuda(21845, 3, 2, 1, 256), "space"), (cuda(1, 4, 65535, 1, 8), "time")):
            assert libraries.why_not_flash_attn(q, q, q, axis, None, 0.1, None) is None
            assert libraries.why_not_sdpa(q, q, q, axis, None, 0.1, None) is None
