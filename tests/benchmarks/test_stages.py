"""The stages of `make cuda` as far as a machine without a GPU allows, and a race from suite to report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latte_fast import results

ROOT = Path(__file__).parents[2]


def stages(out: Path, *names: str, **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | {"OUT": str(out), "DRY": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([ROOT / "benchmarks" / "cuda.sh", *names], env=env, capture_output=True, text=True)


def test_stages_resume(tmp_path: Path) -> None:
    first = stages(tmp_path, "sanitize", "tune")
    assert first.returncode == 0, first.stdout
    assert "sanitize: passed" in first.stdout and "tune: passed" in first.stdout
    assert "compute-sanitizer --tool racecheck" in (tmp_path / "sanitize.log").read_text()
    again = stages(tmp_path, "sanitize", "tune")
    assert again.stdout.count("done before") == 2


def test_a_stage_that_fails_is_not_done(tmp_path: Path) -> None:
    failed = stages(tmp_path, "report")
    assert failed.returncode == 1 and "report: failed (1)" in failed.stdout and "nothing was measured" in failed.stdout
    assert not (tmp_path / "report.done").exists()
    assert stages(tmp_path, "nothing").returncode == 2
    slow = stages(tmp_path, "test", LIMIT="0.2")
    assert "test: failed (124)" in slow.stdout and "over 0.2 s" in (tmp_path / "test.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["test", "ops", "model", "training", "sampling"])
def test_dry_run(stage: str, tmp_path: Path) -> None:
    done = stages(tmp_path, stage)
    assert done.returncode == 0, done.stdout


def test_suites_leave_rows(tmp_path: Path) -> None:
    """Two suites that compile nothing, at sizes that take a moment, then the report of them."""
    suites = [str(ROOT / "benchmarks" / f"test_{name}.py") for name in ("memory", "scaling")]
    command = [sys.executable, "-m", "pytest", *suites, "--benchmark-only", "--tiny", "-m", "quick", "-q"]
    command += ["-p", "no:cacheprovider", "--results", str(tmp_path / "part.json")]
    # a worker of a parallel run would pass on that benchmarks are off
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results.load(tmp_path / "part.json")
    assert {row.suite for row in found.rows} == {"memory", "scaling"}
    kept = {row.contender: row.kept_bytes for row in found.rows if row.suite == "memory"}
    assert 0 < kept["ours, recompute = block"] < kept["ours, recompute = elementwise"] < kept["ours"]
    assert all(row.timed for row in found.rows if row.suite == "scaling")
    assert found.ceilings.keys() == {"copy", "gemm"}
