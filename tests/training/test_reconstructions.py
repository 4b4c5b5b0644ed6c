"""A 3D-VQGAN measured while it trains: what it decodes of clips that it is not trained on."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latte_fast.data import DataConfig
from latte_fast.data.shapes import Shapes
from latte_fast.evaluation import frechet_distance, moments
from latte_fast.evaluation.detector import Detector
from latte_fast.evaluation.during_training import check_eval, log_name
from latte_fast.evaluation.reconstructions import Reconstructions, held_out
from latte_fast.evaluation.transnet import TransNet
from latte_fast.runs.config import EvalConfig, TrainConfig
from latte_fast.runs.log import LOG, read_log
from latte_fast.runs.plot import measured, plot_run
from latte_fast.runs.yaml import write_config
from latte_fast.training import Trainer
from tests.helpers.detectors import Motion, numbered_set, saved
from tests.helpers.tiny_vqgan import tiny_vqgan_run


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    detector = str(saved(Motion(5), tmp_path / "m.pt"))
    asked = EvalConfig(every=2, count=10, metric="fvd", detector=detector)
    return tiny_vqgan_run(tmp_path / "run", eval=asked, frames=8, size=16, steps=4, save_every=4)


class Board:
    """What TensorBoard's writer is given."""

    shown: list[tuple[str, float, int]]

    def __init__(self, folder: Path, purge_step: int) -> None:
        type(self).shown = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.shown.append((name, value, step))

    def close(self) -> None: ...


def test_decoded_clips_meet_their_originals(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rFVD and PSNR in the log, the plot and TensorBoard, of clips of another seed, from the EMA weights."""
    for place in ("runs.log", "training.setup"):
        monkeypatch.setattr(f"latte_fast.{place}.summary_writer", lambda: Board)
    trainer = Trainer(replace(config, tensorboard=True), say=lambda text: None)
    trainer.run()
    lines = read_log(tmp_path / "run" / LOG)
    assert [{"eval_rfvd", "eval_psnr"} <= line.keys() for line in lines] == [False, True, False, True]
    network = torch.jit.load(str(tmp_path / "m.pt"))

    def rows(clips: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network(clips.movedim(-1, 1), rescale=True, resize=True, return_features=True)

    # 11 clips in an epoch, of which 10 are taken
    other = Shapes(11, 8, 16, seed=1)
    videos = torch.stack([other[(i, i)]["video"] for i in (i * 11 // 10 for i in range(10))])
    real = (videos * 127.5 + 128).clamp(0, 255).to(torch.uint8).movedim(2, -1)
    objective: Any = trainer.objective
    made = objective.decoded(videos)
    assert made.shape == real.shape and not any(torch.equal(x, objective.dataset[(0, 0)]["video"]) for x in videos)
    distance = frechet_distance(moments(rows(real)), moments(rows(made)))
    assert lines[-1]["eval_rfvd"] == pytest.approx(distance, rel=1e-5) and distance > 0
    error = (real.double() / 255 - made.double() / 255).square().mean((2, 3, 4))
    assert lines[-1]["eval_psnr"] == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-5)
    assert lines[1]["eval_psnr"] != lines[3]["eval_psnr"]
    held = {(name, step): value for name, value, step in Board.shown}
    assert held["eval_rfvd", 4] == lines[3]["eval_rfvd"] and ("eval_psnr", 2) in held
    assert measured(lines) == ["eval_psnr", "eval_rfvd"] and (tmp_path / "run" / "best.json").is_file()
    pytest.importorskip("matplotlib")
    assert plot_run(tmp_path / "run").is_file()


def test_numbers_of_transnet_are_not_called_rfvd(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save(TransNet().state_dict(), path)
    assert [log_name(Detector(name, path)) for name in ("fvd", "kvd", "jedi")] == [
        f"{form}_transnetv2" for form in ("frechet_distance", "kernel_distance", "jedis_distance")
    ]
    judged = Reconstructions.__new__(Reconstructions)
    judged.config, judged.detector = config, Detector("fvd", path)
    assert judged._title() == "frechet_distance_transnetv2"
    judged.detector = Detector("fvd", config.eval.detector)
    assert judged._title() == "rfvd"


def test_films_to_judge_are_not_trained_on(config: TrainConfig, tmp_path: Path) -> None:
    numbered_set(tmp_path / "films", [9] * 5)
    (tmp_path / "train.txt").write_text("000\n001\n002\n")
    (tmp_path / "test.txt").write_text("003\n004\n")
    data = DataConfig(kind="frames", path=str(tmp_path / "films"), interval=1, flip=True)
    films = replace(config, data=data)
    with pytest.raises(ValueError, match=r"eval.path must be a folder of clips to judge, or eval.split .*, got ''"):
        check_eval(films)
    asked = replace(config.eval, split=str(tmp_path / "test.txt"))
    with pytest.raises(ValueError, match=r"clips that are not trained on, got '2 of 2 that are, .*003 first'"):
        Trainer(replace(films, eval=asked), say=lambda text: None)
    data = replace(data, split=str(tmp_path / "train.txt"))
    trainer = Trainer(replace(films, data=data, eval=asked, steps=2), say=lambda text: None)
    evaluation = trainer.evaluation
    assert evaluation is not None and evaluation.config.eval.count == len(evaluation.dataset) == 2
    # every film's green is its number
    greens = evaluation.videos(evaluation.numbers)[:, 0, 1].mean((1, 2))
    assert np.rint((greens.numpy() + 1) * 127.5).tolist() == [3, 4]
    other = numbered_set(tmp_path / "other", [9])
    assert len(held_out(replace(films, eval=replace(config.eval, path=str(other))), trainer.objective.dataset)) == 1
    with pytest.raises(ValueError, match=r"eval.path must be a set of at least 2 clips, got 1"):
        Trainer(replace(films, eval=replace(config.eval, path=str(other))), say=lambda text: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "is"}, r"eval.metric must be one of fvd, fid, kvd, kid, jedi, prdc, got 'is'"),
        ({"split": "list.txt"}, r"eval.split must be empty but for a VQGAN trained on films, got 'list.txt'"),
    ],
    ids=["metric", "split"],
)
def test_settings_that_are_refused(config: TrainConfig, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(replace(config, eval=replace(config.eval, **changes)), say=lambda text: None)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(config: TrainConfig, tmp_path: Path) -> None:
    """A learning rate of almost nothing, so that both decode by the same weights but for rounding."""
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    still = replace(config, steps=2, save_every=2, optim=replace(config.optim, lr=1e-12))
    found = []
    for count in (1, 2):
        out = tmp_path / f"of-{count}"
        write_config(tmp_path / f"{count}.yaml", replace(still, out=str(out)))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
        command = [*(launch if count > 1 else [sys.executable, "-m"]), "latte_fast", "train"]
        command += ["--config", str(tmp_path / f"{count}.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append([read_log(out / LOG)[1][name] for name in ("eval_rfvd", "eval_psnr")])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
