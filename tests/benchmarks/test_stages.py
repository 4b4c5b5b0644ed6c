"""What races on which machine, and a race from suite to report."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import conftest, contenders
from benchmarks import report as results
from benchmarks.race import race

ROOT = Path(__file__).parents[2]


def test_a_gpu_races_on_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of an op fits its L2 (126 MB in a B200), and the large models are not left to --full."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    width = min(contenders.WIDTHS[size][0] for size in ("B", "XL"))
    assert contenders.op_clips() * contenders.FRAMES * (contenders.SIDE // 2) ** 2 * width * 2 > 126e6
    assert not contenders.large("Latte-XL/2", 8).marks


def test_attention_of_others_is_a_row_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.randn(1, 2, 4, 3, 1, 8).bfloat16()
    (here,) = contenders.libraries(qkv, "time").items()
    assert here[0] == "SDPA on strided views" and callable(here[1])
    assert here[1]().shape == (1, 2, 4, 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = contenders.libraries(qkv, "time")
    assert list(found) == ["SDPA on strided views", "cuDNN", "flash-attn", "xformers"]
    assert found["flash-attn"] == "flash_attn needs a CUDA tensor, got one on cpu"


def test_fp32_is_not_judged_by_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    conftest.pytest_configure(SimpleNamespace(getoption=lambda name: None, addinivalue_line=lambda *line: None))
    assert not torch.backends.cudnn.allow_tf32


def test_a_contender_too_large_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 94 GiB.")

    laps = race({"ours": lambda: None, "oracle": too_large}, seconds=0.01)
    assert not laps["ours"].reason and laps["oracle"].reason == "CUDA out of memory"


NO_DIFFUSERS = """import sys

sys.modules["diffusers"] = None
"""


@pytest.mark.slow
def test_sampling_races_without_diffusers(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(NO_DIFFUSERS)
    done = suites(tmp_path, ["sampling"], "-p", "bare")
    assert done.returncode == 0, done.stdout + done.stderr
    (row, oracle) = results.load(tmp_path / "part.json").rows
    assert row.timed and oracle.timed and row.title.endswith("no VAE, for want of diffusers")


CUT = """import os

def pytest_runtest_setup(item):
    if "test_scaling" in item.nodeid:
        os._exit(9)
"""


def suites(folder: Path, names: list[str], *more: str) -> subprocess.CompletedProcess:
    """Suites at sizes that take a moment; plugins and results lie in the folder."""
    files = [str(ROOT / "benchmarks" / f"test_{name}.py") for name in names]
    command = [sys.executable, "-m", "pytest", *files, "--benchmark-only", "--tiny", "-q", "-p", "no:cacheprovider"]
    # a worker of a parallel run would pass on that benchmarks are off
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["PYTHONPATH"] = os.pathsep.join([str(folder), env.get("PYTHONPATH", "")])
    command += ["--results", str(folder / "part.json"), *more]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_suites_leave_rows(tmp_path: Path) -> None:
    """Two suites that compile nothing, cut off and resumed."""
    (tmp_path / "cut.py").write_text(CUT)
    command = (["memory", "scaling"], "-m", "quick", "--resume")
    assert suites(tmp_path, *command, "-p", "cut").returncode == 9
    assert {row.suite for row in results.load(tmp_path / "part.json").rows} == {"memory"}
    done = suites(tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    found = results.load(tmp_path / "part.json")
    assert {row.suite for row in found.rows} == {"memory", "scaling"}
    kept = {row.contender: row.kept_bytes for row in found.rows if row.suite == "memory"}
    assert 0 < kept["ours, recompute = block"] < kept["ours, recompute = elementwise"] < kept["ours"]
    assert all(row.timed for row in found.rows if row.suite == "scaling")
    assert found.ceilings.keys() == {"copy", "gemm"}
    again = suites(tmp_path, *command)
    assert again.returncode == 0 and len(results.load(tmp_path / "part.json").rows) == len(found.rows)
