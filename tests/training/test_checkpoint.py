"""Runs killed and resumed, checkpoints damaged: nothing is lost and nothing damaged is used."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latte_fast.models.checkpoint import CheckpointError, read_checkpoint
from latte_fast.training import Trainer, checkpoint, load_trained
from latte_fast.training.log import LOG, read_log
from tests.training.tiny import tiny


def kills(folder: Path, *args: str) -> str:
    command = [sys.executable, "-m", "tests.training.kills", str(folder), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(out / LOG)]


def test_kill_at_random_resumes_bit_identical(tmp_path: Path) -> None:
    assert kills(tmp_path, "20", "7").startswith("20 kills")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_kill_at_random_many(tmp_path: Path, seed: int) -> None:
    assert kills(tmp_path, "40", str(seed)).startswith("40 kills")


def test_kill_while_writing_costs_no_other(tmp_path: Path) -> None:
    assert kills(tmp_path, "writing").startswith("10 kills")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    Trainer(tiny(out)).run()
    return out


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize(
    "name",
    ["ema.safetensors", "model.safetensors", "state/__0_0.distcp", "state/.metadata", "meta.json", "manifest.json"],
)
def test_verify_names_the_damaged_file(run: Path, tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "checkpoints" / "step-0000012"
    subprocess.run(["cp", "-r", str(run / "checkpoints" / "step-0000012"), str(tmp_path / "copy")], check=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "copy").rename(folder)
    checkpoint.verify(folder)
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[len(content) // 2 :]
    file.write_bytes(content)
    if damage == "gone":
        file.unlink()
    with pytest.raises(CheckpointError, match=str(file)):
        checkpoint.verify(folder)
    with pytest.raises(CheckpointError, match=str(file)):
        load_trained(folder)


def test_resume_passes_over_a_damaged_one(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run")
    Trainer(config).run()
    want = losses(tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step-0000012" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said: list[str] = []
    Trainer(config, resume=True, say=said.append).run()
    assert any(str(weights) in text for text in said) and any("step-0000008" in text for text in said)
    assert losses(tmp_path / "run") == want
    checkpoint.verify(weights.parent)


def test_keep_leaves_the_newest(run: Path) -> None:
    names = ["step-0000004", "step-0000008", "step-0000012"]
    assert [p.name for p in checkpoint.all_checkpoints(run)] == names
    assert checkpoint.latest(run) == run / "checkpoints" / "step-0000012"


def test_weights_have_upstream_keys(run: Path) -> None:
    folder = run / "checkpoints" / "step-0000012"
    trained = load_trained(run)
    ema, model = (read_checkpoint(folder / f"{name}.safetensors") for name in ("ema", "model"))
    assert ema.keys() == model.keys() == trained.model.state_dict().keys()
    assert any(not torch.equal(ema[key], model[key]) for key in ema)
    assert trained.step == 12 and len(trained.classes) == 12
    assert json.loads((folder / "meta.json").read_text())["samples"] == 48


class Terminated(Trainer):
    """Gets SIGTERM in its seventh update."""

    def update(self, batches: Iterator) -> float:
        waited = super().update(batches)
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return waited


def test_sigterm_leaves_a_checkpoint_between_log_lines(tmp_path: Path) -> None:
    """A line of the log is the mean of five updates, also when the run stopped and went on between them."""
    config = tiny(tmp_path / "alone", log_every=5)
    Trainer(config).run()
    stopped = replace(config, out=str(tmp_path / "stopped"))
    before = signal.getsignal(signal.SIGTERM)
    assert Terminated(stopped).run() == 7
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.latest(tmp_path / "stopped") == tmp_path / "stopped" / "checkpoints" / "step-0000007"
    Trainer(stopped, resume=True).run()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "alone")


def test_resume_takes_more_steps(tmp_path: Path) -> None:
    config = tiny(tmp_path / "long", optim=replace(tiny("").optim, rate="constant"))
    Trainer(config).run()
    Trainer(replace(config, out=str(tmp_path / "short"), steps=6)).run()
    Trainer(replace(config, out=str(tmp_path / "short")), resume=True).run()
    assert losses(tmp_path / "short") == losses(tmp_path / "long")
