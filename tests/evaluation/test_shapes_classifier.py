"""Training, checkpoint and sampling in one: samples show what they were asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast.cli.demo import GUIDANCE, STEPS, judge, samples, train
from latte_fast.codecs.vae import open_vae
from latte_fast.data import DataConfig, open_dataset
from latte_fast.data.shapes import CLASSES
from latte_fast.evaluation.shapes_classifier import share_recognised, train_recogniser
from latte_fast.runs.log import LOG, read_log
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import trained_source
from latte_fast.training import DiffusionConfig, ModelConfig, OptimConfig, TrainConfig, Trainer, load_trained

FOUR = [CLASSES.index(name) for name in ("circle right", "circle left", "circle up", "circle down")]


class Four(torch.utils.data.Dataset):
    """Two clips, the same in each epoch, of each of four classes: what a minute's model can learn."""

    def __init__(self, config: DataConfig, frames: int, size: int, images: int):
        self.whole = open_dataset(config, frames, size, images)
        self.classes = [CLASSES[i] for i in FOUR]
        self.texts = None

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index = key[1]
        item = self.whole[(0, index // 4 * 12 + FOUR[index % 4])]
        return item | {"label": torch.tensor(index % 4)}


@pytest.mark.slow
def test_samples_of_four_classes_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latte_fast.training.objectives.denoising.open_dataset", Four)
    config = TrainConfig(
        out=str(tmp_path / "run"),
        model=ModelConfig(patch_size=4, hidden_size=64, depth=2, num_heads=2, learn_sigma=False),
        data=DataConfig(kind="shapes", clips=24),
        diffusion=DiffusionConfig(prediction="start_x", timesteps="lognormal"),
        optim=OptimConfig(lr=1e-2, betas=(0.9, 0.99), rate="cosine", warmup=20, clip=1.0, ema=0.98, ema_warmup=True),
        frames=2,
        size=8,
        steps=550,
        batch=32,
        save_every=550,
    )
    Trainer(config).run()
    losses = [line["loss"] for line in read_log(tmp_path / "run" / LOG)]
    assert sum(losses[-5:]) / 5 < 0.1 * losses[0]
    source = trained_source(load_trained(tmp_path / "run"), open_vae("identity"), ("0", "1", "2", "3"))
    videos, _ = source.draw(Request(steps=20, scale=3.0), range(48))
    classifier, on_clips = train_recogniser(2, 8, FOUR, steps=100)
    share = share_recognised(classifier, videos.movedim(-1, -3).float() / 127.5 - 1, torch.arange(4).repeat(12))
    print(f"classifier {on_clips:.0%} on clips, {share:.0%} on samples, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert on_clips >= 0.95
    assert share >= 0.8


@pytest.mark.slow
def test_samples_of_the_demo_are_recognised(tmp_path: Path) -> None:
    assert train(tmp_path, STEPS)
    videos, labels = samples(tmp_path, 4, GUIDANCE, torch.device("cpu"))
    assert judge(videos, labels) >= 0.8
