"""The 3D-VQGAN's kernels, compiled for GPUs that are not here: no stack, no local memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["80", "90", "100"])
def test_compile_ahead(target: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.ahead_vqgan", target]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout.splitlines()[-1])
    assert len(records) >= 9
    assert not [r for r in records if r["stack"] or r["local"]]
    assert all(r["wide"] >= 0.5 for r in records)
