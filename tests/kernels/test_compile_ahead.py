"""Every kernel at the presets' shapes, compiled for GPUs that are not here: no stack, no local memory."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latte_fast.config import SIZES

COMMAND = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py"
# what of an H200's issue slots a pass over memory takes: 4.3 TB/s over 132 multiprocessors at 1.98 GHz are 16.5 bytes a
# clock (docs/performance.md), and each of a program's four warps has a scheduler of its own
BYTES_PER_CLOCK = 4.3e12 / 132 / 1.98e9
ROW, TILE = 1152 * 2, 2048 * 2
TENSORS = {
    "norm_modulate_fwd": 2 * ROW,
    "norm_modulate_bwd": 3 * ROW,
    "gate_residual_fwd": 3 * ROW,
    "gate_residual_bwd": 3 * ROW,
    "gate_residual_norm_modulate_fwd": 4 * ROW,
    "gate_residual_norm_modulate_bwd": 6 * ROW,
    "bias_gelu_fwd": 2 * TILE,
    "bias_gelu_bwd": 3 * TILE,
}
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
            assert r["wide"] >= 0.5, f"{r['name']}: {r['wide']:.0%} of its accesses are 16 bytes wide"
    # a program that does not fit beside the others walks its share of the rows alone, when they are done
    x = torch.empty(2, SIZES[size][1], dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    for r in records:
        name = r["name"].removesuffix(" (pos)")
        if name in TENSORS and not name.startswith("bias_gelu"):
            module = importlib.import_module(f"latte_fast.kernels.{name[: -len('_fwd')]}")
            programs, resident = module.config(name, x).programs_per_sm, r["occupancy"] * 64 / r["warps"]
            # with a position table it is one launch of a model's 57
            assert programs <= resident or "(pos)" in r["name"], f"{r['name']}: {programs} programs, {resident} fit"
            assert not r["waits"], f"{r['name']}: {r['waits']} loads a row not asked for ahead"
    if (size, dtype, target) == ("XL", "bf16", 90):
        shares = {
            r["name"]: r["loop"] / (TENSORS[r["name"]] / BYTES_PER_CLOCK) for r in records if r["name"] in TENSORS
        }
        assert set(shares) == set(TENSORS) and all(0 < share <= 0.8 for share in shares.values()), shares
        forwards = [r for r in records if r["name"].startswith("flash_attention_fwd")]
        assert forwards and all(r["occupancy"] >= 2 * r["warps"] / 64 for r in forwards), forwards


@pytest.mark.parametrize(("size", "dtype", "target"), DEFAULT)
def test_compile_ahead(size: str, dtype: str, target: int) -> None:
    check(size, dtype, target)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dtype", "target"), [case for case in ALL if case not in DEFAULT])
def test_compile_ahead_product(size: str, dtype: str, target: int) -> None:
    check(size, dtype, target)
