"""A metric measured while a run trains: its samples, its log, the best checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latte_fast.data import DataConfig
from latte_fast.evaluation import frechet_distance, moments
from latte_fast.evaluation.during_training import RunEvaluation, check_eval
from latte_fast.runs import checkpoint
from latte_fast.runs.config import DiffusionConfig, EvalConfig, SampleConfig, TrainConfig
from latte_fast.runs.log import read_log
from latte_fast.runs.plot import plot_run
from latte_fast.training import ModelConfig, Trainer
from tests.helpers.detectors import Colours, Motion, saved

VALUES = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5}


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        out=str(tmp_path / "run"),
        model=ModelConfig(patch_size=4, hidden_size=16, depth=2, num_heads=2, learn_sigma=False),
        data=DataConfig(kind="shapes", clips=24),
        diffusion=DiffusionConfig(steps=50),
        sample=SampleConfig(steps=2),
        eval=EvalConfig(every=2, count=10, metric="fvd", detector=str(saved(Motion(5), tmp_path / "m.pt"))),
        frames=8, size=16, steps=8, batch=2, log_every=1, save_every=3, keep=1,
    )  # fmt: skip


def test_samples_of_the_average_meet_clips_of_the_data(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(replace(config, steps=2, save_every=2), say=lambda text: None)
    trainer.run()
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert ["eval_fvd" in line for line in lines] == [False, True]
    network = torch.jit.load(str(tmp_path / "m.pt"))

    def rows(clips: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = clips.movedim(-1, 1)
            return network(x, rescale=True, resize=True, return_features=True)

    drawn = [trainer.objective.draw(numbers) for numbers in (range(8), range(8, 10))]
    # clips 0, 2, 4, 7, ... of 24, with the labels and starts of their numbers
    numbers = [i * 24 // 10 for i in range(10)]
    pixels = [(trainer.objective.dataset[(i, i)]["video"] * 127.5 + 128).clamp(0, 255) for i in numbers]
    real = torch.stack(pixels).to(torch.uint8).movedim(2, -1)
    expected = frechet_distance(moments(rows(real)), moments(torch.cat([rows(x) for x in drawn if x is not None])))
    assert lines[1]["eval_fvd"] == pytest.approx(expected, rel=1e-5) and expected > 0
    # the weights themselves, which differ from their average, draw others
    before = drawn[0]
    average = trainer.objective.learners["model"].ema.average
    for tensor in average.values():
        tensor.add_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
    assert before is not None and not torch.equal(before, trainer.objective.draw(range(8)))


def test_the_best_checkpoint_is_kept(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    seen: list[int] = []

    def measure(self: RunEvaluation) -> dict[str, float]:
        seen.append(2 * len(seen) + 2)
        return {self.name: VALUES[seen[-1]]}

    monkeypatch.setattr(RunEvaluation, "measure", measure)
    Trainer(replace(config, steps=5), say=lambda text: None).run()
    steps = [checkpoint.step_of(folder) for folder in checkpoint.all_checkpoints(run)]
    # step 4 is the best so far, step 5 the newest
    assert steps == [4, 5] and json.loads((run / "best.json").read_text()) == {"step": 4, "metric": "fvd", "value": 3.0}
    Trainer(config, resume=True, say=lambda text: None).run()
    steps = [checkpoint.step_of(folder) for folder in checkpoint.all_checkpoints(run)]
    assert steps == [4, 8] and seen == [2, 4, 6, 8]
    assert json.loads((run / "best.json").read_text())["step"] == 4
    assert [line["eval_fvd"] for line in read_log(run / "log.jsonl") if "eval_fvd" in line] == [*VALUES.values()]
    pytest.importorskip("matplotlib")
    assert plot_run(run).is_file()
    # a metric that rises is the better the higher it is
    higher = RunEvaluation.__new__(RunEvaluation)
    higher.row, higher.best = replace(trainer_row(), better="higher"), (2, 5.0)
    assert higher.improves(6.0) and not higher.improves(5.0) and not higher.improves(float("nan"))


def trainer_row():  # type: ignore[no-untyped-def]
    from latte_fast.evaluation.metrics import METRICS

    return METRICS["is"]


def test_metrics_of_frames_and_of_samples_alone(config: TrainConfig, tmp_path: Path) -> None:
    detector = str(saved(Colours(), tmp_path / "c.pt"))
    asked = EvalConfig(every=1, count=3, metric="kid", detector=detector)
    for name in ("a", "b"):
        Trainer(replace(config, out=str(tmp_path / name), steps=1, eval=asked), say=lambda text: None).run()
    held = [read_log(tmp_path / name / "log.jsonl")[0]["eval_kid"] for name in ("a", "b")]
    assert held[0] == held[1] != 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 3, "log": 2}, "eval.every must be a multiple of log_every = 2, got 3"),
        ({"metric": "psnr"}, "eval.metric must be one of fvd, fid, .*, got 'psnr'"),
        ({"metric": "is", "count": 19}, "eval.count must be at least 20 for is, got 19"),
        ({"every": -1}, "eval.every must be at least 0, got -1"),
        ({"detector": "none.pt"}, "detector must be a TorchScript file, got none.pt, no file"),
    ],
    ids=["every", "metric", "count", "negative", "detector"],
)
def test_settings_that_are_refused(config: TrainConfig, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_every = changes.pop("log", 1)
        Trainer(replace(config, log_every=log_every, eval=replace(config.eval, **changes)), say=lambda text: None)
    assert not Path(config.out).exists()


def test_latents_and_tokens_have_no_films(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eval\.every must be 0 for tokens, which makes no clips, got 2"):
        check_eval(replace(config, objective="tokens"))
    latents = replace(config, data=DataConfig(kind="latents", path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"eval\.every must be 0 for latents, whose films are not there, got 2"):
        Trainer(latents, say=lambda text: None)
