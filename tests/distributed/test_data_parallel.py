"""One, two and four ranks: the same losses, each other's checkpoints, the same files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast.models.checkpoint import read_checkpoint

LAST = "checkpoints/step-0000006/ema.safetensors"


@pytest.fixture(scope="module", params=["2", pytest.param("2,4", marks=pytest.mark.slow)])
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("spread")
    command = [sys.executable, "-m", "tests.helpers.spread", str(folder), request.param]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"folder": folder, "counts": request.param.split(",")}


def test_losses_do_not_depend_on_ranks(result: dict[str, Any]) -> None:
    every = {name: values for name, values in result["losses"].items() if not name.startswith(("text-", "half-"))}
    losses = {name: torch.tensor(values, dtype=torch.float64) for name, values in every.items()}
    alone = losses.pop("one")
    assert alone.shape == (6, 2) and alone[0, 0] != alone[1, 0]
    runs = [f"{how}-accumulated" for n in result["counts"] for how in (f"ddp-{n}", f"fsdp-{n}")]
    plain = [f"{how}-{n}" for how in ("ddp", "fsdp") for n in result["counts"]]
    plain = plain if len(result["counts"]) > 1 else ["ddp-2", "moved-to-fsdp-2"]
    assert {*runs, *plain, "one-accumulated"} <= losses.keys()
    for name, values in losses.items():
        steps = len(values)
        torch.testing.assert_close(values, alone[:steps], rtol=1e-5, atol=0, msg=lambda m, name=name: f"{name}: {m}")
        assert steps == 6 or name == "moved"


def test_losses_of_text_do_not_depend_on_ranks(result: dict[str, Any]) -> None:
    found = {name: torch.tensor(x) for name, x in result["losses"].items() if name.startswith("text-")}
    alone, *spread = (found.pop("text-auto-1"), found.pop("text-fsdp-2"), *found.values())
    assert alone.shape == (6, 2) and alone[0, 0] != alone[1, 0]
    for values in spread:
        torch.testing.assert_close(values, alone, rtol=1e-5, atol=0)


def test_half_losses_do_not_depend_on_ranks(result: dict[str, Any]) -> None:
    """A sharded fp32 master, whose blocks pass bf16 to each other and read rotary tables in fp32."""
    for time_pos in ("absolute", "rope") if len(result["counts"]) > 1 else ("rope",):
        alone, sharded = (torch.tensor(result["losses"][f"half-{time_pos}-{n}"]) for n in (1, 2))
        assert alone.shape == (6, 2) and alone.tolist() != result["losses"]["one"]
        # half an ulp of bf16: a rank's products have half the rows, and their sums another order
        torch.testing.assert_close(sharded, alone, rtol=2**-9, atol=0)


def test_checkpoints_move_between_ranks(result: dict[str, Any]) -> None:
    """The averages after the move, too: those of the run that stayed on one rank."""
    alone = read_checkpoint(result["folder"] / "one" / LAST)
    for name in ("moved-to-fsdp-2", "moved-to-ddp-2", "moved-to-auto-1"):
        moved = read_checkpoint(result["folder"] / name / LAST)
        assert moved.keys() == alone.keys()
        for key in alone:
            torch.testing.assert_close(moved[key], alone[key], rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_samples_during_training_change_no_loss(result: dict[str, Any]) -> None:
    assert result["losses"]["one-ema"] == result["losses"]["one"]
    assert (result["folder"] / "one-ema" / "samples" / "step-0000006.png").stat().st_size > 100


def test_sampled_files_do_not_depend_on_ranks(result: dict[str, Any]) -> None:
    assert result["same"] and result["files"] == 8
