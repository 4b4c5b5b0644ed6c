"""Every kernel at the presets' shapes, compiled for GPUs that are not here, by each Triton that a GPU may meet it with.

No stack, no local memory, every program resident, instructions beside the bytes, and attention with a tile in flight.
"""

import functools
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latte_fast.config import SIZES

ROOT = Path(__file__).parents[2]
# what torch 2.11 brings, as on the first GPUs; `make` installs it beside the pinned one
BESIDE = "3.6.0"
FOLDER = Path(os.environ.get("TRITON_BESIDE", Path(sys.prefix) / f"triton-{BESIDE}"))
# what of a card's issue slots a pass over memory takes: 4.3 TB/s over 132 multiprocessors at 1.98 GHz are 16.5 bytes a
# clock (docs/performance.md), and a multiprocessor has a scheduler for every fourth warp
BYTES_PER_CLOCK = {"H200": 4.3e12 / 132 / 1.98e9, "H100": 3.0e12 / 132 / 1.98e9}
ROW, TILE = 1152 * 2, 2048 * 2
# bytes once around the loop; the share of the H200's slots that may go beside them
TENSORS = {
    "norm_modulate_fwd": (2 * ROW, 0.45),
    "norm_modulate_bwd": (3 * ROW, 0.58),
    "gate_residual_fwd": (3 * ROW, 0.45),
    "gate_residual_bwd": (3 * ROW, 0.58),
    "gate_residual_norm_modulate_fwd": (4 * ROW, 0.45),
    "gate_residual_norm_modulate_bwd": (6 * ROW, 0.58),
    "bias_gelu_fwd": (2 * TILE, 0.5),
    "bias_gelu_bwd": (3 * TILE, 0.62),
}
ROWS = [name for name in TENSORS if not name.startswith("bias_gelu")]
DEFAULT = [("XL", "bf16", 90), ("XL", "fp32-bf16", 90), ("XL", "fp32", 80), ("B", "bf16", 100)]
ALL = [(s, d, t) for s in ("XL", "L", "B", "S") for d in ("bf16", "fp32", "fp32-bf16") for t in (80, 90, 100)]


def resident(record: dict) -> int:
    return round(record["occupancy"] * 64 / record["warps"])


def environment(triton: str) -> tuple[dict[str, str], str]:
    """The environment of a process that compiles with the installed Triton or the one beside, and its version."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if triton != "beside":
        return env, importlib.metadata.version("triton")
    if importlib.metadata.version("triton") == BESIDE:
        pytest.skip(f"Triton {BESIDE} is the installed one")
    if not FOLDER.is_dir():
        pytest.skip(f"no Triton {BESIDE} beside the installed one: `make triton-beside`, or TRITON_BESIDE=folder")
    env["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *filter(None, [env.get("PYTHONPATH")])])
    return env, BESIDE


@functools.cache
def compiled(triton: str, size: str, dtypes: str, targets: str, cases: str = "", without: str = "") -> list[dict]:
    """The records of a process of its own, as this one interprets; several words stand for several of each."""
    env, want = environment(triton)
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "--sizes", size, "--dtypes", *dtypes.split()]
    command += ["--targets", *targets.split(), *(["--cases", *cases.split()] if cases else []), "--json", "-"]
    command += ["--without", *without.split()] if without else []
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert {r["triton"] for r in records} == {want}
    return records


def check(triton: str, size: str, dtype: str, target: int) -> None:
    first = (size, dtype, target) == FIRST
    records = compiled(triton, size, dtype, str(target), without=SUMS if first else "")
    assert len(records) >= (7 if dtype == "fp32-bf16" else 15)
    check_records(records, size, dtype, target)
    if first:
        for name, r in {r["name"]: r for r in records if r["name"] in TENSORS}.items():
            bytes_moved, most = TENSORS[name]
            shares = {card: r["loop"] * r["warps"] / 4 * rate / bytes_moved for card, rate in BYTES_PER_CLOCK.items()}
            assert 0 < shares["H100"] < shares["H200"] <= most, f"{name}: {shares} of the issue slots"
        assert {r["name"] for r in records} >= set(TENSORS)
    if dtype == "bf16":
        assert len([r for r in records if r["name"].startswith("flash_attention")]) == (9 if first else 11)


def check_records(records: list[dict], size: str, dtype: str, target: int) -> None:
    """What holds for every kernel of a preset, dtype and target."""
    spilled = [f"{r['name']}: stack {r['stack']}, local {r['local']}" for r in records if r["stack"] or r["local"]]
    assert not spilled, spilled
    # the larger piece of a row, and heads of 72 at 144 bytes, move 16 bytes at a time
    for r in records:
        if r["name"].startswith(("norm_modulate", "packed", "flash")):
            # sums over tokens leave as numbers of 4 bytes
            least = 0.45 if r["name"].endswith("-sums)") else 0.5
            assert r["wide"] >= least, f"{r['name']}: {r['wide']:.0%} of its accesses are 16 bytes wide"
    # a program that does not fit beside the others walks its share of the rows alone, when they are done
    x = torch.empty(2, SIZES[size][1], dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    for r in records:
        name = r["name"].removesuffix(" (pos)")
        if name in ROWS:
            module = importlib.import_module(f"latte_fast.kernels.{name[: -len('_fwd')]}")
            programs = module.config(name, x).programs_per_sm
            # with a position table it is one launch of a model's 57
            fit = programs <= resident(r) or "(pos)" in r["name"]
            assert fit, f"{r['name']}: {programs} programs, {resident(r)} fit"
            assert not r["waits"], f"{r['name']}: {r['waits']} loads a row not asked for ahead"
    if dtype == "bf16":
        streamed = [r for r in records if r["name"].startswith("flash_attention")]
        for r in streamed:
            assert r["in_flight"] > 0, f"{r['name']}: no tile is under way where the loop waits"
        if target >= 90:
            few = [f"{r['name']}: {r['registers']} registers, {r['shared']} bytes" for r in streamed if resident(r) < 2]
            assert not few, few


# both Tritons on the first GPUs' target; the other cells are slow, and below are their telling kernels
FIRST = ("XL", "bf16", 90)
# cases that the first cell leaves to test_compile_ahead_models.py, whose "training" has them
SUMS = "attention-time-sums attention-space-sums"
CELLS = [
    pytest.param(triton, *case, marks=[] if case == FIRST else pytest.mark.slow)
    for triton in ("installed", "beside")
    for case in DEFAULT
]


@pytest.mark.parametrize(("triton", "size", "dtype", "target"), CELLS)
def test_compile_ahead(triton: str, size: str, dtype: str, target: int) -> None:
    check(triton, size, dtype, target)


def test_compile_ahead_for_other_targets() -> None:
    """Attention over space, and the pass with most tensors in both residual dtypes, for sm_80 and sm_100."""
    records = compiled("installed", "B", "bf16 fp32-bf16", "80 100", "pos attention-space")
    for dtype, target in ((dtype, target) for dtype in ("bf16", "fp32-bf16") for target in (80, 100)):
        some = [r for r in records if (r["dtype"], r["target"]) == (dtype, target)]
        names = {r["name"].split(" ")[0] for r in some}
        assert "gate_residual_norm_modulate_fwd" in names and ("flash_attention_dkdv" in names) == (dtype == "bf16")
        check_records(some, "B", dtype, target)


@pytest.mark.slow
@pytest.mark.parametrize("triton", ["installed", "beside"])
@pytest.mark.parametrize(("size", "dtype", "target"), [case for case in ALL if case not in DEFAULT])
def test_compile_ahead_product(triton: str, size: str, dtype: str, target: int) -> None:
    check(triton, size, dtype, target)
