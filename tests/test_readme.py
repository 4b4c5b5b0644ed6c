"""Every Python snippet of README, docs/python.md and docs/tats.md runs, in order, at a size that a test can afford."""

import functools
import importlib
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch

import latte_fast
from latte_fast import Latte, backends, ops, testing
from latte_fast.ops.registration import REGISTRY

cli = importlib.import_module("latte_fast.cli.main")

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/python.md", "docs/tats.md")
SNIPPETS = [s for page in PAGES for s in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)]
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


def test_shell_lines_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every latte-fast line of README and docs is one that the command understands."""
    lines = [
        line.split("#")[0].split("-m latte_fast")[-1].removeprefix("latte-fast").strip()
        for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for line in re.findall(r"^(?:torchrun .*-m latte_fast|latte-fast) .*$", page.read_text(), re.MULTILINE)
    ]
    assert len(lines) >= 6
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("steps: 10\n")
    Path("configs").symlink_to(ROOT / "configs")
    for line in lines:
        argv = shlex.split(line)
        name, rest = argv[0], argv[1:]
        module = importlib.import_module(f"latte_fast.cli.{name.replace('-', '_')}")
        command = module.command(rest) if hasattr(module, "command") else getattr(module, name.replace("-", "_"))
        try:
            cli.run(functools.wraps(command)(lambda *args, **kwargs: None), f"latte-fast {name}", rest)
        except SystemExit as error:
            raise AssertionError(f"latte-fast {line}") from error


@pytest.mark.parametrize("page", ["README.md", "docs/text-to-video.md", "docs/training.md"])
def test_what_is_sampled_was_trained(page: str) -> None:
    text = (ROOT / page).read_text()
    sampled = set(re.findall(r"^latte-fast sample (runs/\S+)", text, re.MULTILINE))
    assert sampled and sampled <= set(re.findall(r"^latte-fast train .*--out (\S+)", text, re.MULTILINE))


def test_ops_page_lists_every_op_and_its_backends() -> None:
    page = (ROOT / "docs/ops.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| ([^|]*) \| `([^|]*)` \|$", page, re.MULTILINE)
    assert {op for op, *_ in rows} == set(ops.__all__)
    assert {name for _, name, *_ in rows} == set(backends.ops())
    for op, name, listed, computes in rows:
        assert tuple(re.findall(r"`(\w+)`", listed)) == backends.candidates(name)
        assert op not in REGISTRY or name == REGISTRY[op].kernels
        assert computes == getattr(ops, op).__doc__.splitlines()[0].removesuffix(".")


def test_architecture_shows_an_op_as_it_is() -> None:
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
    source = (ROOT / "latte_fast/ops/gate_residual.py").read_text()
    assert len(shown) == 2 and all(part in source for part in shown)


def test_installing_page_lists_every_extra_and_variable() -> None:
    page = (ROOT / "docs/installing.md").read_text()
    extras = re.search(
        r"\[project.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    assert extras is not None
    read = (ROOT / "setup.py").read_text() + (ROOT / "csrc/cpu/isa.h").read_text()
    wanted = re.findall(r"^([\w-]+) = \[", extras[1], re.MULTILINE) + re.findall(
        r"LATTE_FAST_[A-Z_]*[A-Z]|MAX_JOBS", read
    )
    for name in wanted:
        assert re.search(rf"^\| `{name}` \|", page, re.MULTILINE), name


def test_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
