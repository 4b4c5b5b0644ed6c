"""From each data set's folder to a trained model: through latents written once, and through the VAE as it trains."""

import json
from pathlib import Path

import pytest
import torch

from latte_fast.codecs.vae import open_vae
from latte_fast.data import DataConfig, encode
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import trained_source
from latte_fast.training import ModelConfig, SampleConfig, Trainer, load_trained
from tests.helpers.films import layout
from tests.helpers.tiny_run import tiny

MODEL = ModelConfig(patch_size=1, hidden_size=16, depth=2, num_heads=2, class_dropout_prob=0.2)


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("kind", ["ffs", "ucf101", "sky", "taichi"])
def test_encode_then_train(kind: str, images: int, tmp_path: Path, vae_folder: Path) -> None:
    source = DataConfig(kind=kind, path=str(layout(kind, tmp_path / "set")), interval=2)  # type: ignore[arg-type]
    encode.encode(source, tmp_path / "latents", open_vae(vae_folder), 16, dtype="float32")
    data = DataConfig(kind="latents", path=str(tmp_path / "latents"), interval=2)
    config = tiny(tmp_path / "run", data=data, model=MODEL, size=16, steps=3, images=images, vae=str(vae_folder))
    Trainer(config).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(0 < line["loss"] < 10 and 0 <= line["data_wait"] <= 1 for line in lines)
    trained = load_trained(tmp_path / "run")
    assert len(trained.classes) == (3 if kind == "ucf101" else 0) and trained.model.in_channels == 4
    if not images:
        request = Request(count=1, batch=1, steps=2, scale=2.0 if trained.classes else 1.0)
        video, _ = trained_source(trained, open_vae(vae_folder)).draw(request, [0])
        assert video.shape == (1, 2, 16, 16, 3) and video.dtype == torch.uint8


def test_train_through_the_vae(tmp_path: Path, vae_folder: Path) -> None:
    """Videos in, their posterior drawn by sample number: the same losses in one go and resumed."""
    data = DataConfig(kind="ucf101", path=str(layout("ucf101", tmp_path / "set")), interval=2)
    settings = {"data": data, "model": MODEL, "size": 16, "vae": str(vae_folder), "save_every": 2}
    sample = SampleConfig(every=2, count=1, steps=2, scale=2.0)

    def losses(folder: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]

    Trainer(tiny(tmp_path / "whole", steps=4, sample=sample, **settings)).run()
    Trainer(tiny(tmp_path / "parts", steps=2, sample=sample, **settings)).run()
    Trainer(tiny(tmp_path / "parts", steps=4, sample=sample, **settings), resume=True).run()
    assert losses("whole") == losses("parts") and len(losses("whole")) == 4
    assert list((tmp_path / "whole" / "samples").glob("*.png"))
