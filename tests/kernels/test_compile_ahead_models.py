"""The kernels of the 3D-VQGAN, of FlexDiT and of decoding, compiled for GPUs that are not here by each Triton.

No stack, no local memory, accesses of 16 bytes; a pass over rows has the next row on its way.
"""

import json
import subprocess
import sys

import pytest

from tests.kernels.test_compile_ahead import ROOT, environment

pytest.importorskip("triton")
LEAST = {"vqgan": 9, "flexdit": 18, "tokens": 20}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["80", "90", "100"])
@pytest.mark.parametrize("triton", ["installed", "beside"])
@pytest.mark.parametrize("model", list(LEAST))
def test_compile_ahead(model: str, triton: str, target: str) -> None:
    env, version = environment(triton)
    command = [sys.executable, "-m", "tests.kernels.ahead", model, target]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout.splitlines()[-1])
    assert len(records) >= LEAST[model] and {r["triton"] for r in records} == {version}
    assert not [r for r in records if r["stack"] or r["local"]]
    # decoding reads the weights and the cache so, and beside them a few numbers one by one
    least = {"small_linear_fwd_kernel": 0.3, "join_splits_kernel": 0.0}
    narrow = [(r["kernel"], r["wide"]) for r in records if r["wide"] < least.get(r["kernel"], 0.5)]
    assert not narrow, narrow
    rows = [r for r in records if r["kernel"].startswith("pooled_norm")]
    assert bool(rows) == (model == "flexdit") and not [r for r in rows if r["waits"]]
