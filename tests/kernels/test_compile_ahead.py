"""Every kernel at the presets' shapes, compiled for GPUs that are not here: no stack, no local memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py"
DEFAULT = [("XL", "bf16", 90), ("XL", "fp32", 80), ("B", "bf16", 100)]
ALL = [(s, d, t) for s in ("XL", "L", "B", "S") for d in ("bf16", "fp32", "fp32-bf16") for t in (80, 90, 100)]


def check(size: str, dtype: str, target: int) -> None:
    # a process of its own: this one interprets
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        str(COMMAND),
        "--sizes",
        size,
        "--dtypes",
        dtype,
        "--targets",
        str(target),
        "--json",
        "-",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert len(records) >= (7 if dtype == "fp32-bf16" else 15)
    spilled = [f"{r['name']}: stack {r['stack']}, local {r['local']}" for r in records if r["stack"] or r["local"]]
    assert not spilled, spilled
    # the larger piece of a row, and heads of 72 at 144 bytes, move 16 bytes at a time
    for r in records:
        if r["name"].startswith(("norm_modulate", "packed", "flash")):
            assert r["wide"] >= 0.4, f"{r['name']}: {r['wide']:.0%} of its accesses are 16 bytes wide"


@pytest.mark.parametrize(("size", "dtype", "target"), DEFAULT)
def test_compile_ahead(size: str, dtype: str, target: int) -> None:
    check(size, dtype, target)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dtype", "target"), [case for case in ALL if case not in DEFAULT])
def test_compile_ahead_product(size: str, dtype: str, target: int) -> None:
    check(size, dtype, target)
