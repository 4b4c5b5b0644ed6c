"""Samples during training: whose weights, of what process, and that training goes on as if they had not been."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast.diffusion import create_diffusion
from latte_fast.training import SampleConfig, Trainer
from tests.helpers.tiny_run import MODEL, tiny


@pytest.mark.parametrize("dropout", [0.2, 0.0])
def test_preview_is_of_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    asked = SampleConfig(every=4, count=3, method="ddpm", steps=5, scale=2.5)
    model = replace(MODEL, class_dropout_prob=dropout)
    trainer = Trainer(tiny(tmp_path / "run", sample=asked, model=model, seed=8))
    (tmp_path / "run").mkdir()
    batches = trainer.batches()
    for _ in range(3):
        trainer.update(batches)
    seen: dict[str, Any] = {}

    def record(diffusion: Any, model: Any, numbers: Any, shape: Any, **kwargs: Any) -> torch.Tensor:
        seen.update(kwargs, betas=diffusion.tables.betas, numbers=numbers, shape=shape)
        seen["weights"] = {name: p.detach().clone() for name, p in trainer.objective.learner.model.named_parameters()}
        seen["training"] = trainer.objective.learner.model.training
        return torch.zeros(len(numbers), *shape)

    monkeypatch.setattr("latte_fast.sampling.source.generate", record)
    before = {name: p.detach().clone() for name, p in trainer.objective.learner.model.named_parameters()}
    trainer.objective.preview(trainer.step, tmp_path / "run" / "samples")
    weights, betas = seen.pop("weights"), seen.pop("betas")
    assert all(torch.equal(p, trainer.objective.learner.ema.average[name]) for name, p in weights.items())
    assert not all(torch.equal(p, before[name]) for name, p in weights.items())
    assert all(torch.equal(p, before[name]) for name, p in trainer.objective.learner.model.named_parameters())
    assert trainer.objective.learner.model.training and (betas == create_diffusion("5").tables.betas).all()
    condition, null = seen.pop("condition"), seen.pop("null")
    assert condition["y"].tolist() == [0, 1, 2] and (null["y"].tolist() == [12] * 3 if dropout else not null)
    assert seen == {
        "numbers": range(3), "shape": (2, 3, 8, 8), "seed": 8, "method": "ddpm", "scale": 2.5 if dropout else 1.0,
        "clip_denoised": True, "device": torch.device("cpu"), "training": False, "eta": 0.0, "dtype": torch.float32,
        "step_keywords": (),
    }  # fmt: skip
    assert [p.name for p in (tmp_path / "run" / "samples").iterdir()] == ["step-0000003.png"]
