"""Optional attention libraries: which one serves, and why another can't, without one of them or a GPU."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from latte_fast.ops import attention_libraries as libraries

WORKS = "def flash_attn_func(*args, softmax_scale): return args[0]"
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
