"""Rectified flow: what the model is taught, what samplers make of it, and a run from training to clips."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import latte_fast
from latte_fast.diffusion import create_diffusion
from latte_fast.diffusion.solvers import SOLVERS, solve
from latte_fast.runs.config import DiffusionConfig
from latte_fast.sampling.planned import plain_plan, whole_process
from latte_fast.testing import relative_error
from latte_fast.training import ModelConfig, SampleConfig, Trainer
from tests.helpers.tiny_run import losses, tiny

FLOW = DiffusionConfig(prediction="flow")
MODEL = ModelConfig(patch_size=4, hidden_size=16, depth=2, num_heads=2, class_dropout_prob=0.2, learn_sigma=False)


def test_clips_and_noise_are_joined_by_a_line() -> None:
    process = create_diffusion("", learn_sigma=False, prediction="flow")
    start, noise = torch.randn(2, 4, 2, 3, 8, 8).unbind(0)
    t = torch.tensor([0, 249, 500, 999])
    share = ((t + 1) / 1000).view(-1, 1, 1, 1, 1)
    x = process.q_sample(start, t, noise)
    assert relative_error(x, (1 - share) * start + share * noise) <= 1e-6
    seen: list[Tensor] = []

    def model(given: Tensor, time: Tensor) -> Tensor:
        seen.extend((given, time))
        return noise - start + 0.5

    losses = process.training_losses(model, start, t, noise=noise)
    assert torch.equal(seen[0], x) and torch.equal(seen[1], t)
    assert relative_error(losses["loss"], torch.full((4,), 0.25)) <= 1e-5 and "vb" not in losses
    assert relative_error(process.predict_start(noise - start, x, t), start) <= 1e-5


@pytest.mark.parametrize("method", SOLVERS)
def test_straight_paths_are_exact(method: str) -> None:
    """Every sampler ends at the clip where the model's velocity is that of one line, whatever the number of steps."""
    process = whole_process(FLOW, False)
    start, noise = torch.randn(2, 1, 2, 3, 8, 8, dtype=torch.float64).unbind(0)
    plan = plain_plan(process, method, 7, 1.0)

    def predict(x: Tensor, number: int) -> Tensor:
        t = torch.tensor([plan.rows[number].time])
        return process.predict_start(noise - start, x, t)

    assert relative_error(solve(plan.solver_rows(), noise, predict), start) <= 1e-6


def test_a_run(tmp_path: Path) -> None:
    """A model of flow trains, shows previews, and is sampled with every sampler that draws no noise."""
    sample = SampleConfig(every=4, count=2, steps=3, scale=2.0)
    config = tiny(tmp_path / "run", model=MODEL, diffusion=FLOW, steps=8, sample=sample)
    Trainer(config, say=lambda text: None).run()
    assert len(losses(tmp_path / "run")) == 8
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 2
    drawn: dict[Any, Tensor] = {}
    for method in ("ddim", "euler", "heun", "unipc", "dpm++"):
        clips = latte_fast.sample(tmp_path / "run", samples=1, steps=4, method=method, progress=False)
        assert clips is not None
        drawn[method] = clips.videos.float()
    assert torch.equal(drawn["ddim"], drawn["euler"])
    assert not torch.equal(drawn["heun"], drawn["euler"])
    for given in ({"method": "ddpm"}, {"eta": 0.5}):
        with pytest.raises(ValueError, match="method must be one without noise for rectified flow"):
            latte_fast.sample(tmp_path / "run", samples=1, steps=4, progress=False, **given)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rectified flow has no learned variance"):
        create_diffusion("", learn_sigma=True, prediction="flow")
    process = create_diffusion("", learn_sigma=False, prediction="flow")
    with pytest.raises(ValueError, match="rectified flow has no betas"):
        process.ddim_sample_loop(lambda x, t: x, (1, 2, 3, 8, 8))
    for given, message in (
        ({"model": ModelConfig()}, r"model\.learn_sigma must be False for rectified flow"),
        ({"diffusion": DiffusionConfig(prediction="flow", min_snr=5.0)}, r"min_snr must be left out for rectified"),
        ({"diffusion": DiffusionConfig(prediction="flow", schedule="squaredcos_cap_v2")}, "schedule must be left out"),
        ({"sample": SampleConfig(method="ddpm")}, r"sample\.method must be other than ddpm"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(tmp_path, **{"model": MODEL, "diffusion": FLOW, **given})
