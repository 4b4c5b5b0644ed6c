"""Every Python snippet of the README runs, in order, at a size that a test can afford."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import latte_fast
from latte_fast import Latte, testing

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
SMALL = {"depth": 2, "hidden_size": 64, "num_heads": 2, "patch_size": 2}


@pytest.fixture
def small_xl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Latte-XL/2 at a small width, and a checkpoint of it where the snippets look for one."""
    monkeypatch.setitem(latte_fast.Latte_models, "Latte-XL/2", partial(Latte, **SMALL))
    monkeypatch.chdir(tmp_path)
    model = testing.refill(Latte(**SMALL, input_size=32, num_frames=16, num_classes=101, extras=2))
    torch.save({"ema": model.state_dict(), "model": model.state_dict()}, tmp_path / "ucf101.pt")


def test_snippets_run(small_xl: None) -> None:
    assert len(SNIPPETS) >= 3
    namespace: dict = {}
    for snippet in SNIPPETS:
        exec(snippet, namespace)
    x = torch.randn(1, 16, 4, 32, 32, dtype=torch.bfloat16)
    out = namespace["model"](x, torch.tensor([3]), y=torch.tensor([5]))
    assert out.shape == (1, 16, 8, 32, 32)
    assert out.abs().max() > 0


def test_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
