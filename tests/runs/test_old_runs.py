"""A run that version 0.1 wrote, stopped between two lines of its log: it loads, and goes on as it would have."""

import json
import tarfile
from pathlib import Path

import pytest

import latte_fast
from latte_fast.runs.config import CONFIG, TrainConfig
from latte_fast.runs.convert import convert
from latte_fast.runs.log import LOG, read_log
from latte_fast.runs.yaml import read_config
from latte_fast.training import Trainer

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-0.1.tar.xz"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_old_run_goes_on_as_it_would_have(run: Path) -> None:
    """The same draws, so the same losses but for the rounding of another machine; its log up to the stop stays."""
    expected = json.loads((run / "expected.json").read_text())
    before = (run / LOG).read_bytes()
    config = read_config(run / CONFIG, TrainConfig)
    trainer = Trainer(config, resume=True, say=lambda text: None)
    assert trainer.step == 5 and trainer.summed == 1 and trainer.objective.columns == ("loss", "mse", "vb")
    batch = next(trainer.batches())
    assert batch["t"].tolist() == [59, 203, 748, 803] and batch["label"].tolist() == [2, 5, 10, 2]
    assert trainer.run() == 8
    assert (run / LOG).read_bytes().startswith(before)
    for line, want in zip(read_log(run / LOG), expected, strict=True):
        assert {name: line[name] for name in want} == pytest.approx(want, rel=1e-5)


def test_old_checkpoint_loads_samples_and_converts(run: Path, tmp_path: Path) -> None:
    trained = latte_fast.load(run)
    assert trained.step == 5 and trained.classes[3] == "circle down" and trained.adapter.name == "latte"
    drawn = latte_fast.sample(trained, classes=["circle down"], samples=1, steps=2, progress=False)
    assert drawn is not None and drawn.names == ["circle down"]
    convert(run, tmp_path / "run.pt")
