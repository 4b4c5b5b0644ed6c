"""Kernels of the 3D-VQGAN, FlexDiT, 8-bit inference, decoding and training, compiled by each Triton for absent GPUs.

No stack, no local memory, accesses of 16 bytes; a pass over rows has the next row on its way.
"""

import json
import subprocess
import sys

import pytest

from tests.kernels.test_compile_ahead import ROOT, environment

pytest.importorskip("triton")
LEAST = {"vqgan": 9, "flexdit": 18, "fp8": 45, "int8rows": 69, "int8": 8, "tokens": 20, "training": 36}
# programs of a multiprocessor at D = 1152, whose rows they share evenly if they run together
PROGRAMS = {"norm_modulate_fwd": 10, "gate_residual_norm_modulate_fwd": 6, "bias_gelu_8bit_fwd": 3, "rows_8bit_fwd": 14}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["80", "90", "100"])
@pytest.mark.parametrize("triton", ["installed", "beside"])
@pytest.mark.parametrize("model", list(LEAST))
def test_compile_ahead(model: str, triton: str, target: str) -> None:
    env, version = environment(triton)
    command = [sys.executable, "-m", "tests.kernels.ahead", model, target]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    if model == "fp8" and target == "80":
        assert done.returncode != 0 and "fp8e4nv not supported" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout.splitlines()[-1])
    assert len(records) >= LEAST[model] and {r["triton"] for r in records} == {version}
    assert not [r for r in records if r["stack"] or r["local"]]
    # rows of 8 bits are half as wide, those of 384 a part of what a warp stores; decoding reads weights and cache
    # so, and beside them a few numbers one by one
    usual = {"fp8": 0.25, "int8rows": 0.25, "training": 0.45}.get(model, 0.5)
    # of weights of int8 there are half as many accesses, and as many of these numbers
    least = {
        "small_linear_fwd_kernel": 0.25 if model == "int8" else 0.3,
        "join_splits_kernel": 0.0,
        "sum_rows_kernel": 0.0,
    }
    if model == "training":
        check_training(records, int(target))
        records = [r for r in records if not r["kernel"].startswith("adamw_ema")]
    narrow = [(r["kernel"], r["wide"]) for r in records if r["wide"] < least.get(r["kernel"], usual)]
    assert not narrow, narrow
    # a product's loop also stores, for which it reads scales
    records = [r for r in records if not r["kernel"].startswith("linear_int8")]
    rows = [r for r in records if r["kernel"].startswith("pooled_norm") or model in ("fp8", "int8rows")]
    assert bool(rows) == (model in ("flexdit", "fp8", "int8rows")) and not [r for r in rows if r["waits"]]
    if model in ("fp8", "int8rows"):
        # the widest come first; with a position table it is one launch of a model's 57
        for name, programs in PROGRAMS.items():
            first = next(r for r in records if r["kernel"].startswith(name))
            assert programs <= round(first["occupancy"] * 64 / first["warps"]), first


def check_training(records: list[dict], target: int) -> None:
    """Sums over tokens leave attention's backward its two programs; the optimizer moves 16 bytes where it may."""
    wide = sorted(r["wide"] for r in records if r["kernel"].startswith("adamw_ema"))
    # half of the accesses are a program's reads of its row of the table
    assert len(wide) == 4 and wide[1] < 0.1 and wide[2] > 0.45, wide
    flash = [r for r in records if r["kernel"].startswith("flash")]
    halves = flash[:8] if target >= 90 else []  # those of 16 bits come first
    assert len(flash) == 16 and all(r["in_flight"] > 0 for r in halves), halves
    few = [r for r in halves if round(r["occupancy"] * 64 / r["warps"]) < 2]
    assert not few, few
