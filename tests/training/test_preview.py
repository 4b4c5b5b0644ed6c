"""Samples during training: whose weights, of what process, and that training goes on as if they had not been."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast.diffusion import create_diffusion
from latte_fast.sampling.planned import plain_plan, whole_process
from latte_fast.training import DiffusionConfig, SampleConfig, Trainer
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
        "step_keywords": (), "part": 0,
    }  # fmt: skip
    assert [p.name for p in (tmp_path / "run" / "samples").iterdir()] == ["step-0000003.png"]


def test_preview_follows_a_plan(tmp_path: Path) -> None:
    """A plan of other weights is followed in training; one for other steps is refused before the first step."""
    process = whole_process(DiffusionConfig(), True)
    made = plain_plan(
        process, "ddim", 5, 2.5, shape=[2, 3, 8, 8], schedule="linear", prediction="epsilon", weights="00"
    )
    rows = (*made.rows[:2], *(replace(row, compute=False, order=1) for row in made.rows[2:4]), made.rows[4])
    path = tmp_path / "plan.json"
    replace(made, rows=rows).save(path)
    asked = SampleConfig(every=4, count=3, steps=5, scale=2.5, plan=str(path))
    trainer = Trainer(tiny(tmp_path / "run", sample=asked, seed=8))
    ran: list[int] = []
    trainer.objective.learner.model.blocks[0].register_forward_hook(lambda *args: ran.append(1))
    (tmp_path / "run").mkdir()
    trainer.objective.preview(4, tmp_path / "run" / "samples")
    assert len(ran) == 3 and (tmp_path / "run" / "samples" / "step-0000004.png").is_file()
    with pytest.raises(ValueError, match="plan: steps must be 5, for which the plan was made, got 6"):
        Trainer(tiny(tmp_path / "other", sample=replace(asked, steps=6)))
    with pytest.raises(ValueError, match=r"sample\.plan must be left out for ddpm"):
        tiny(tmp_path / "other", sample=replace(asked, method="ddpm"))
