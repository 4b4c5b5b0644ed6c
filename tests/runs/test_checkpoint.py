"""Runs killed and resumed, checkpoints damaged: nothing is lost and nothing damaged is used."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast.models.checkpoint import CheckpointError, read_checkpoint
from latte_fast.runs import checkpoint
from latte_fast.runs.config import CONFIG
from latte_fast.runs.log import LOG, read_log
from latte_fast.training import Trainer, load_trained
from tests.helpers.tiny_run import tiny


def kills(folder: Path, *args: str) -> str:
    command = [sys.executable, "-m", "tests.helpers.kills", str(folder), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(out / LOG)]


@pytest.mark.parametrize("count", ["8", pytest.param("20", marks=pytest.mark.slow)])
def test_kills_at_random_and_while_writing_cost_nothing(tmp_path: Path, count: str) -> None:
    """Resumed runs end bit for bit as one left alone; at no stage of writing a checkpoint is another one lost."""
    at_random, writing = kills(tmp_path, count, "7", "writing").splitlines()
    assert at_random.startswith(f"{count} kills") and writing == "8 kills while writing"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_kill_at_random_many(tmp_path: Path, seed: int) -> None:
    assert kills(tmp_path, "40", str(seed)).startswith("40 kills")


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
            for _ in range(2):  # as impatient queues send it
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


def test_sums_between_log_lines_are_kept_exactly(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", steps=9, log_every=9)
    trainer = Terminated(config)
    trainer.run()
    kept = trainer.sums.clone()
    assert kept.dtype == torch.float64 and not torch.equal(kept, kept.float().double())
    assert torch.equal(Trainer(config, resume=True).sums, kept)


def test_sums_of_other_ranks_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks' sums of their means are four times what one rank goes on from."""
    config = tiny(tmp_path / "run", steps=9, log_every=9)
    trainer = Terminated(config)
    trainer.run()
    before = checkpoint.read_meta
    many = {"sums": dict(zip(trainer.objective.columns, (4 * trainer.sums).tolist(), strict=True)), "processes": 4}
    monkeypatch.setattr(checkpoint, "read_meta", lambda folder: before(folder) | many)
    assert torch.equal(Trainer(config, resume=True).sums, trainer.sums)


def test_keep_counts_no_damaged_later_one(tmp_path: Path) -> None:
    """Resumed behind a damaged checkpoint, a run that keeps one keeps the one it has just written."""
    config = tiny(tmp_path / "run")
    Trainer(config).run()
    (tmp_path / "run" / "checkpoints" / "step-0000012" / "meta.json").write_text("")
    trainer = Trainer(replace(config, keep=1), resume=True)
    trainer.stopping = True
    assert trainer.run() == 9
    assert checkpoint.latest(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "step-0000009"
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["step-0000009", "step-0000012"]


def test_weights_that_are_lost_replace_no_checkpoint(tmp_path: Path) -> None:
    """A loss that ends the run at its next line of the log has already spoilt the weights saved before that line."""
    config = tiny(tmp_path / "run", save_every=1, log_every=12, keep=1)
    trainer = Trainer(config)
    losses = trainer.objective.losses

    def spoilt(*args: Any) -> dict[str, torch.Tensor]:
        return {name: value * (float("nan") if trainer.step == 4 else 1) for name, value in losses(*args).items()}

    trainer.objective.losses = spoilt  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="weights must be finite to be saved, got others at step 5"):
        trainer.run()
    model = load_trained(tmp_path / "run")
    assert model.step == 4 and all(p.isfinite().all() for p in model.model.parameters())


def test_a_full_disk_costs_neither_configuration_nor_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / "run", steps=1)
    Trainer(config).run()
    trainer = Trainer(replace(config, steps=2), resume=True)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in (CONFIG, LOG)}

    def full(path: Path, text: str) -> None:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.run()
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoints", CONFIG, LOG]


def test_resume_takes_more_steps(tmp_path: Path) -> None:
    config = tiny(tmp_path / "long", optim=replace(tiny("").optim, rate="constant"))
    Trainer(config).run()
    Trainer(replace(config, out=str(tmp_path / "short"), steps=6)).run()
    Trainer(replace(config, out=str(tmp_path / "short")), resume=True).run()
    assert losses(tmp_path / "short") == losses(tmp_path / "long")
