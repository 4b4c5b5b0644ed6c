"""LatteClassPipeline: our sampler's numbers, diffusers' schedulers, its folder, and `latte-fast convert --pipeline`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latte_fast import Latte, testing
from latte_fast.cli.convert import convert
from latte_fast.diffusion import create_diffusion
from latte_fast.models.config import ModelConfig
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.runs.config import DiffusionConfig, TrainConfig
from latte_fast.runs.load import Trained, about_of
from tests.helpers.pipelines import diffusers

if not hasattr(diffusers, "LattePipeline"):
    pytest.skip("this diffusers has no Latte", allow_module_level=True)

from latte_fast.integrations.diffusers import ClassTransformer, LatteClassPipeline

SMALL: dict[str, Any] = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_frames": 2}
CLASSES = ["cat", "dog", "emu"]


def trained(**changes: Any) -> Trained:
    torch.manual_seed(0)
    sizes = SMALL | {"extras": 2, "num_classes": 3} | changes
    model: Any = testing.refill(Latte(**sizes)).eval()
    adapter = LatteAdapter(model.config, CLASSES if model.config.extras == 2 else [])
    return Trained(model, adapter, TrainConfig(), 7)


def vae(channels: int = 4) -> Any:
    torch.manual_seed(1)
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return diffusers.AutoencoderKL(down_block_types=down, up_block_types=up, block_out_channels=(8, 8),
                                   norm_num_groups=4, latent_channels=channels).eval()  # fmt: skip


def made(**changes: Any) -> LatteClassPipeline:
    pipe = LatteClassPipeline.of(trained(**changes), vae())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise() -> torch.Tensor:
    return torch.randn(2, 4, 2, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_ddim_is_our_sampler(scale: float) -> None:
    """At every step of a short process, where the time steps of both are the same."""
    run = trained()
    config = TrainConfig(diffusion=DiffusionConfig(steps=24))
    pipe = LatteClassPipeline.of(Trained(run.model, run.adapter, config, 0), vae())
    pipe.set_progress_bar_config(disable=True)
    got = pipe(["emu", 0], num_inference_steps=24, guidance_scale=scale, latents=noise(), output_type="latent").frames
    x, process = noise().transpose(1, 2), create_diffusion("", diffusion_steps=24)
    y = torch.tensor([2, 0])
    call: Any = run.model
    given: dict[str, Any] = {"y": y}
    if scale != 1.0:
        x, given = torch.cat([x, x]), {"y": torch.cat([y, torch.full_like(y, 3)]), "cfg_scale": scale}
        call = lambda x, t, y, cfg_scale: run.model.forward_with_cfg(x, t, y, cfg_scale=cfg_scale)  # noqa: E731
    with torch.no_grad():
        want = process.ddim_sample_loop(call, x.shape, x, clip_denoised=False, model_kwargs=given)[:2]
    assert testing.relative_error(got.transpose(1, 2), want) <= 1e-4


@pytest.mark.parametrize("name", ["DDPM", "DPMSolverMultistep", "EulerDiscrete"])
def test_schedulers_and_output_types(name: str) -> None:
    pipe = LatteClassPipeline.of(trained(), vae(), scheduler=name)
    pipe.set_progress_bar_config(disable=True)
    learned = getattr(pipe.scheduler.config, "variance_type", None)
    assert learned == ("learned_range" if name == "DDPM" else None)
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "latents": noise()[:1]}
    videos = {}
    for kind in ("pt", "np", "pil", "latent"):
        again = torch.Generator().manual_seed(1)
        videos[kind] = pipe("cat", output_type=kind, generator=again, **options).frames
    assert videos["pt"].shape == (1, 2, 3, 16, 16) and videos["latent"].shape == (1, 4, 2, 8, 8)
    assert videos["pt"].min() >= 0 and videos["pt"].std() > 0.01
    assert abs(torch.from_numpy(videos["np"]).movedim(-1, 2) - videos["pt"]).max() <= 1e-6
    assert len(videos["pil"][0]) == 2 and videos["pil"][0][0].size == (16, 16)


def test_callbacks_and_generators() -> None:
    pipe = made()
    steps = []

    def callback(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append((i, pipe.num_timesteps))
        return {"latents": tensors["latents"] * 0} if i == 1 else {}

    given = {"num_inference_steps": 2, "output_type": "latent"}
    assert not pipe(1, callback_on_step_end=callback, **given).frames.any() and steps == [(0, 2), (1, 2)]
    one = [torch.Generator().manual_seed(s) for s in (1, 2)]
    both = pipe([1, 2], generator=one, **given).frames
    apart = [pipe(label, generator=torch.Generator().manual_seed(label), **given).frames for label in (1, 2)]
    assert testing.relative_error(both, torch.cat(apart)) <= 3e-6
    assert pipe(0, num_videos=3, return_dict=False, **given)[0].shape[0] == 3


@torch.no_grad()
def test_a_folder_and_its_parts(tmp_path: Path) -> None:
    pipe = made()
    options = {"num_inference_steps": 2, "latents": noise(), "guidance_scale": 3.0, "output_type": "pt"}
    want = pipe(["dog", "cat"], **options).frames
    pipe.save_pretrained(tmp_path / "out")
    again = LatteClassPipeline.from_pretrained(tmp_path / "out")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(["dog", "cat"], **options).frames, want)
    again.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(again.scheduler.config)
    assert again(["dog", "cat"], **options).frames.isfinite().all()
    model = ClassTransformer.from_pretrained(tmp_path / "out" / "transformer", torch_dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.names == CLASSES
    other = LatteClassPipeline.from_pretrained(tmp_path / "out", transformer=model, vae=None)
    assert other.transformer is model and other.vae is None


def test_a_model_without_classes_of_pixels() -> None:
    pipe = LatteClassPipeline.of(trained(extras=1, in_channels=3), None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.clip_sample
    video = pipe(num_videos=2, num_inference_steps=2, output_type="pt").frames
    assert video.shape == (2, 2, 3, 8, 8)
    with pytest.raises(ValueError, match="class_labels must be None without classes, got 1"):
        pipe(1)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"class_labels": "cow"}, "class_labels must be numbers from 0 to 2, or of cat, dog, emu, got 'cow'"),
    "number": ({"class_labels": [1, 3]}, "class_labels must be numbers from 0 to 2, .*got 3"),
    "none": ({}, "class_labels must be .*got None"),
    "type": ({"class_labels": 1, "output_type": "gif"}, "output_type must be one of pt, np, pil, latent, got 'gif'"),
    "latents": ({"class_labels": 1, "latents": torch.zeros(1)}, r"latents must be \(1, 4, 2, 8, 8\), got \(1,\)"),
    "callback": (
        {"class_labels": 1, "callback_on_step_end_tensor_inputs": ["x"]},
        "inputs must be names of latents, got x",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name: str) -> None:
    kwargs, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        made()(**kwargs)


def test_bad_parts() -> None:
    with pytest.raises(ValueError, match="guidance_scale must be 1 for a model that was trained without dropped"):
        made(class_dropout_prob=0.0)(1, guidance_scale=2.0)
    with pytest.raises(ValueError, match="in_channels must be 8, those of the vae's latents, got 4"):
        LatteClassPipeline.of(trained(), vae(8))
    with pytest.raises(ValueError, match="output_type must be latent without a vae, as 4 channels are no pixels, got"):
        LatteClassPipeline.of(trained(), None)("dog")
    flow = TrainConfig(model=ModelConfig(learn_sigma=False), diffusion=DiffusionConfig(prediction="flow"))
    run = trained()
    with pytest.raises(ValueError, match="prediction must be one of epsilon, start_x, v for a pipeline, got flow"):
        LatteClassPipeline.of(Trained(run.model, run.adapter, flow, 0), vae())
    with pytest.raises(ValueError, match="latte must be a Latte, got a SimpleNamespace"):
        ClassTransformer.of(SimpleNamespace())  # type: ignore[arg-type]


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained()
    vae().save_pretrained(tmp_path / "vae")
    LatteAdapter.export(run.model, tmp_path / "x.safetensors", None, about_of(run))
    source, out = tmp_path / "x.safetensors", tmp_path / "pipeline"
    with pytest.raises(SystemExit, match="vae must be the folder of an AutoencoderKL for a model of 4 channels"):
        convert(source, out, pipeline=True)
    with pytest.raises(SystemExit, match="vae must be identity or the folder of an AutoencoderKL, got"):
        convert(source, out, pipeline=True, vae=tmp_path / "none")
    with pytest.raises(SystemExit, match="--vae must be left out without --pipeline"):
        convert(source, out, vae=tmp_path / "vae")
    assert not out.exists()
    convert(source, out, pipeline=True, vae=tmp_path / "vae", dtype="bfloat16")
    assert "MB" in capsys.readouterr().out
    pipe = LatteClassPipeline.from_pretrained(out, torch_dtype=torch.bfloat16)
    assert pipe.transformer.dtype == torch.bfloat16 and pipe.vae.config.latent_channels == 4
    assert torch.equal(pipe.transformer.latte.x_embedder.proj.weight, run.model.x_embedder.proj.weight.bfloat16())
    with pytest.raises(SystemExit, match="out must not exist"):
        convert(source, out, pipeline=True, vae=tmp_path / "vae")
