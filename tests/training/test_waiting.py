"""An update and a step of sampling leave nothing for the host to wait for: the meta device stands in for a GPU."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast.data import DataConfig
from latte_fast.diffusion import METHODS, create_diffusion, guided
from latte_fast.sampling.windows import windowed
from latte_fast.training import Ranks, Trainer
from tests.helpers.texts import shapes_texts
from tests.helpers.tiny_run import tiny
from tests.helpers.waiting import GPU, no_waiting


@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "bf16-weights", "micro_batch": 2}, {"images": 2}, {"data": "text"}],
    ids=["plain", "master", "images", "text"],
)
def test_an_update(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # neither knows the meta device
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    unfused = functools.partial(torch.optim.AdamW, foreach=True)
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **kwargs: unfused(*args, **kwargs))
    if changes.get("data") == "text":
        changes = {"data": DataConfig(kind="shapes", clips=11, text=str(shapes_texts(tmp_path / "texts")))}
    trainer = Trainer(tiny(tmp_path / "run", **changes), Ranks(device=GPU), say=lambda text: None)
    run = trainer.batches()
    # tables reach the device in the first
    trainer.update(run)
    ready = [next(run) for _ in range(trainer.share // trainer.micro)]
    with no_waiting():
        trainer.update(iter(ready))
    assert trainer.step == 2 and trainer.norm.device == GPU


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_sampling(method: str, learned: bool) -> None:
    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out = x * (t + y).view(-1, 1, 1, 1, 1)
        return torch.cat([out, out], dim=2) if learned else out

    process = create_diffusion("5", learn_sigma=learned)
    kwargs = {"model_kwargs": {"y": torch.zeros(4, dtype=torch.long, device=GPU)}, "device": GPU}
    longer = guided(windowed(model, 4, 6), 3.0)
    process.sample(method, longer, (2, 6, 3, 4, 4), **kwargs)
    with no_waiting():
        drawn = process.sample(method, longer, (2, 6, 3, 4, 4), **kwargs)
    assert drawn.shape == (2, 6, 3, 4, 4) and drawn.device == GPU
