"""A run's weights in a pipeline's folder: sampled by the run's process and size, and refused where they do not fit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latte_fast.diffusion import create_diffusion
from latte_fast.integrations.latte_pipeline import open_pipeline, sample_text
from latte_fast.integrations.pipeline_folder import check_folder
from latte_fast.models.latte_t2v.adapter import LatteT2VAdapter
from latte_fast.models.latte_t2v.model import LatteT2V
from latte_fast.runs.load import Trained
from latte_fast.sampling.request import SCHEDULERS, Request, TextRequest
from latte_fast.training import DiffusionConfig, Ranks, TrainConfig
from tests.helpers.pipelines import PUBLISHED, SMALL, diffusers, pipeline

CPU = torch.device("cpu")
RAIN = TextRequest(("rain",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latte-1")
    pipeline().save_pretrained(path)
    return path


def stand_in(*, size: int = 16, **changes: Any) -> Trained:
    """A run on captions that fits the folder; `changes` of its process and of its model."""
    process = {name: changes.pop(name) for name in ("schedule", "steps", "prediction") if name in changes}
    torch.manual_seed(2)
    model = LatteT2V(**SMALL | PUBLISHED | changes).eval()
    config = TrainConfig(size=size, diffusion=DiffusionConfig(**process))
    return Trained(model, LatteT2VAdapter(model.config), config, 0)


@pytest.mark.parametrize("prediction", ["epsilon", "start_x", "v"])
@pytest.mark.parametrize(("schedule", "steps"), [("linear", 1000), ("linear", 250), ("squaredcos_cap_v2", 1000)])
def test_sampled_by_its_own_process(folder: Path, prediction: Any, schedule: Any, steps: int) -> None:
    trained = stand_in(prediction=prediction, schedule=schedule, steps=steps)
    pipe = open_pipeline(folder, RAIN, CPU, torch.float32, trained)
    assert pipe.transformer is trained.model and type(pipe.scheduler).__name__ == "DDIMScheduler"
    own = create_diffusion("", schedule, diffusion_steps=steps, prediction=prediction)
    want = torch.from_numpy(own.tables.alphas_cumprod)
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod.double(), want, rtol=1e-4, atol=1e-7)
    x, out = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 3, 4, 8, 8)
    pipe.scheduler.set_timesteps(10)
    for t in pipe.scheduler.timesteps[1:]:
        got = pipe.scheduler.step(out, t, x).pred_original_sample
        torch.testing.assert_close(got, own.predict_start(out, x, t[None]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_every_scheduler_has_the_process(folder: Path, scheduler: str, schedule: Any) -> None:
    trained = stand_in(prediction="v", schedule=schedule, steps=500)
    pipe = open_pipeline(folder, TextRequest(("rain",), scheduler=scheduler), CPU, torch.float32, trained)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    want = torch.from_numpy(create_diffusion("", schedule, diffusion_steps=500).tables.alphas_cumprod)
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod.double(), want, rtol=1e-4, atol=1e-7)


def test_a_short_scheduler_config_is_no_other_process(folder: Path, tmp_path: Path) -> None:
    """What it leaves out is the scheduler's own default, which must not win over the run."""
    shutil.copytree(folder, tmp_path / "x")
    index = tmp_path / "x" / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "PNDMScheduler"))
    (tmp_path / "x" / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "PNDMScheduler"}')
    trained = stand_in(prediction="v", schedule="squaredcos_cap_v2")
    for scheduler in (None, "DDIM", "DDPM"):
        request = TextRequest(("rain",), scheduler=scheduler)
        config = open_pipeline(tmp_path / "x", request, CPU, torch.float32, trained).scheduler.config
        assert (config.prediction_type, config.beta_schedule) == ("v_prediction", "squaredcos_cap_v2")
        # latents are not bounded by 1, as DDIM and DDPM take them to be where a config doesn't say
        assert not config.get("clip_sample")
    how = Request(count=1, steps=2, scale=7.5)
    with pytest.raises(ValueError, match=r"scheduler must be one of DDIM, .* predicts start_x, got 'PNDM'"):
        check_folder(tmp_path / "x", RAIN, how, stand_in(prediction="start_x"))


@pytest.mark.parametrize("scheduler", ["DDIM", "DDPM"])
@pytest.mark.parametrize("out_channels", [4, 8])
def test_variance(folder: Path, tmp_path: Path, scheduler: str, out_channels: int) -> None:
    """Learned where the model has it; a model without one is sampled all the same."""
    trained = stand_in(out_channels=out_channels)
    x, t, text = torch.randn(1, 4, 3, 8, 8), torch.tensor([5]), torch.randn(1, 6, 40)
    request = TextRequest(("rain",), scheduler=scheduler)
    with torch.no_grad():
        want = trained.model(x, t, text).sample
        pipe = open_pipeline(folder, request, CPU, torch.float32, trained)
        out = pipe.transformer(x, t, text, return_dict=False)[0]
    assert out.shape[1] == 8 and torch.equal(out[:, :out_channels], want)
    learned = {"DDIM": None, "DDPM": "learned_range" if out_channels == 8 else "fixed_large"}
    assert getattr(pipe.scheduler.config, "variance_type", None) == learned[scheduler]
    how = Request(count=1, steps=2, scale=7.5, format="npz")
    sample_text(folder, request, how, tmp_path / "out", Ranks(), torch.float32, stand_in(out_channels=out_channels))
    assert np.load(tmp_path / "out" / "000000.npz")["video"].std() > 1


def test_the_run_s_size_is_the_default(folder: Path, tmp_path: Path) -> None:
    """Not that of its table, which may be another model's."""
    how = Request(count=1, steps=1, scale=1.0, format="npz")
    trained = stand_in(size=24, sample_size=4)
    sample_text(folder, RAIN, how, tmp_path / "out", Ranks(), torch.float32, trained)
    assert np.load(tmp_path / "out" / "000000.npz")["video"].shape == (3, 24, 24, 3)


UNFIT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "channels": ({"in_channels": 3, "out_channels": 6}, {}, "in_channels of the run's model must be 4, the latent_ch"),
    "captions": ({"caption_channels": 12}, {}, "caption_channels of the run's model must be 40, the d_model of"),
    "frames": ({"video_length": 2}, {"frames": 3}, "frames must be 2 as the model's table, or 1, got 3"),
    "size": ({"size": 12}, {}, "height must be a multiple of 8 pixels, as VAE and patch need, got 12"),
    "start_x": ({"prediction": "start_x"}, {"scheduler": "PNDM"}, "must be one of DDIM, .* that predicts start_x, got"),
    "steps": ({"steps": 49}, {}, r"steps must be in \[1, 49\], got 50"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_costs_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(diffusers.LattePipeline, "from_pretrained", None)
    changes, asked, message = UNFIT[name]
    request, how = TextRequest(("rain",), **asked), Request(count=1, steps=50, scale=7.5)
    with pytest.raises(ValueError, match=message):
        sample_text(folder, request, how, tmp_path / "out", Ranks(), torch.float32, stand_in(**changes))
    assert not (tmp_path / "out").exists()
