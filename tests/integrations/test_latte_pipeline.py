"""Text to files from a pipeline's folder: the pipeline's own numbers, any number of ranks, every wrong folder named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latte_fast.cli.sample import sample
from latte_fast.diffusion.noise import Use, generator, normal
from latte_fast.distributed.ranks import Ranks
from latte_fast.integrations.latte_pipeline import PipelineSource, open_pipeline, sample_text
from latte_fast.sampling.request import SCHEDULERS, Request, TextRequest, read_prompts
from tests.helpers.pipelines import diffusers, pipeline

SMALL = {"steps": 2, "height": 16, "width": 16, "format": "npz"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latte-1")
    pipeline().save_pretrained(path)
    return path


def clip(path: Path) -> np.ndarray:
    return np.load(path)["video"]


def test_sample_is_the_pipeline_s(folder: Path, tmp_path: Path) -> None:
    sample(pretrained=str(folder), prompt=("a dog runs", "rain"), out=str(tmp_path / "out"), seed=3, **SMALL)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.npz", "000001.npz", "samples.json"]
    names = json.loads((tmp_path / "out" / "samples.json").read_text())["names"]
    assert names == ["a dog runs", "rain"]
    pipe = diffusers.LattePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = normal(3, 1, (3, 4, 8, 8), Use.START).transpose(0, 1)[None]
    video = pipe("rain", num_inference_steps=2, height=16, width=16, video_length=3, guidance_scale=7.5,
                 latents=noise, clean_caption=False, output_type="pt").frames[0]  # fmt: skip
    want = (video * 255 + 0.5).clamp(0, 255).to(torch.uint8).movedim(1, -1).numpy()
    got = clip(tmp_path / "out" / "000001.npz")
    assert got.shape == (3, 16, 16, 3) and got.std() > 1
    assert np.abs(got.astype(int) - want).max() <= 1


@pytest.mark.parametrize(
    ("given", "over_time", "length"),
    [({"frames": 4, "over_time": False}, False, 4), ({"frames": 1}, False, 1), ({}, True, 16)],
    ids=str,
)
def test_all_that_is_asked_for_reaches_the_pipeline(given: dict[str, Any], over_time: bool, length: int) -> None:
    seen: dict[str, Any] = {}

    class Pipe:
        transformer = SimpleNamespace(
            config=SimpleNamespace(video_length=16, in_channels=4, sample_size=8), dtype=torch.bfloat16
        )
        vae_scale_factor = 8

        def __call__(self, prompt: str, **kwargs: Any) -> Any:
            seen.update(kwargs, prompt=prompt)
            return SimpleNamespace(frames=[torch.tensor([-0.1, 0.5, 1.2]).view(1, 3, 1, 1)])

    request = TextRequest(("a", "b"), negative="grey", height=24, width=32, decoded_at_once=3, **given)
    how = Request(steps=7, scale=2.5, eta=0.3, seed=2)
    assert PipelineSource(Pipe(), request).draw_one(how, 3).tolist() == [[[[0, 128, 255]]]]
    later = int(generator(2, 3, Use.STEP).integers(2**63))
    assert seen.pop("generator").initial_seed() == later and seen.pop("callback_on_step_end")
    latents = seen.pop("latents")
    first = normal(2, 3, (length, 4, 3, 4), Use.START).transpose(0, 1)[None]
    assert latents.dtype == torch.bfloat16 and torch.equal(latents, first.bfloat16())
    assert seen == {
        "prompt": "b", "negative_prompt": "grey", "num_inference_steps": 7, "guidance_scale": 2.5, "eta": 0.3,
        "video_length": length, "height": 24, "width": 32, "enable_temporal_attentions": over_time,
        "decode_chunk_size": 3, "clean_caption": False, "output_type": "pt",
    }  # fmt: skip


def test_two_ranks_make_the_same_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = TextRequest(("a dog runs", "rain"), height=16, width=16)
    how = Request(count=3, steps=1, scale=7.5, format="npz")
    sample_text(folder, request, how, tmp_path / "one", Ranks(), torch.float32)
    monkeypatch.setattr(Ranks, "barrier", lambda self: None)
    told: list[Any] = []

    def from_first(self: Ranks, make: Callable[[], Any]) -> Any:
        """Rank 0 runs before rank 1 here, which then hears what rank 0 did, in order."""
        if self.first:
            told.append(make())
            return told[-1]
        return told.pop(0)

    monkeypatch.setattr(Ranks, "from_first", from_first)
    for rank in range(2):
        sample_text(folder, request, how, tmp_path / "two", Ranks(rank, 2), torch.float32)
    for name in ("000000.npz", "000001.npz", "000002.npz"):
        assert np.array_equal(clip(tmp_path / "one" / name), clip(tmp_path / "two" / name))


@pytest.mark.parametrize("frames", [1, None])
def test_images_and_formats(folder: Path, tmp_path: Path, frames: int | None) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a dog\n\nrain\n")
    out = tmp_path / "out"
    sample(pretrained=str(folder), prompts=file, out=str(out), frames=frames, **SMALL | {"format": "mp4", "steps": 1})
    assert {p.name for p in out.iterdir()} == {"000000.mp4", "000001.mp4", "samples.json"}
    with pytest.raises(SystemExit, match="must not hold these samples yet"):
        sample(pretrained=str(folder), prompts=file, out=str(out), frames=frames, **SMALL | {"format": "mp4"})


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_steps(folder: Path, tmp_path: Path, scheduler: str) -> None:
    """From a folder whose scheduler learned its variance, as upstream's config says."""
    shutil.copytree(folder, tmp_path / "x")
    config = tmp_path / "x" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"variance_type": "learned_range"}))
    folder = tmp_path / "x"
    request = TextRequest(("rain",), scheduler=scheduler)
    pipe = open_pipeline(folder, request, torch.device("cpu"), torch.float32)
    assert type(pipe.scheduler).__name__ == f"{scheduler}Scheduler"
    out = pipe("rain", num_inference_steps=6, height=16, width=16, video_length=3, output_type="latent",
               clean_caption=False).frames  # fmt: skip
    assert out.isfinite().all()


def test_temporal_decoder(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), latent_channels=4
    )
    pipe = diffusers.LattePipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "both")
    decoder.save_pretrained(tmp_path / "both" / "vae_temporal_decoder")
    out = tmp_path / "out"
    sample(pretrained=str(tmp_path / "both"), prompt=("rain",), temporal_decoder=True, out=str(out), **SMALL)
    assert clip(out / "000000.npz").shape == (3, 16, 16, 3)


def test_prompts_are_lines(tmp_path: Path) -> None:
    """After a byte order mark; a line ends at a newline and nowhere else."""
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa dog\r\n\r\nrain\u2028on a lake\nsnow".encode())
    assert read_prompts(file) == ("a dog", "rain\u2028on a lake", "snow")
    file.write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts must be a file in UTF-8, got .*prompts\.txt"):
        read_prompts(file)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({"pretrained": None, "prompt": ("a",)}, "give a trained model's path, or --pretrained"),
    "no prompt": ({}, "--pretrained needs --prompt"),
    "empty": ({"prompt": (" ",)}, "prompt must not be empty"),
    "scheduler": ({"prompt": ("a",), "scheduler": "Magic"}, "scheduler must be one of DDIM, .*got 'Magic'"),
    "frames": ({"prompt": ("a",), "frames": 5}, "frames must be 3 as the model's table, or 1, got 5"),
    "file": ({"prompts": Path("none.txt")}, "prompts must be a file with a prompt a line, got none.txt"),
    "decoder": ({"prompt": ("a",), "temporal_decoder": True}, "vae_temporal_decoder.config.json is missing"),
    "folder": ({"prompt": ("a",), "pretrained": "maxin-cn/Latte-1"}, "pretrained must be a local folder"),
    "height": ({"prompt": ("a",), "height": 100}, "height must be a multiple of 8 pixels, .* got 100"),
    "width": ({"prompt": ("a",), "width": 18}, "width must be a multiple of 8 pixels, .* got 18"),
    "steps": ({"prompt": ("a",), "steps": 1001}, r"steps must be in \[1, 1000\], got 1001"),
    "scale": ({"prompt": ("a",), "guidance": 0.5}, "guidance must be at least 1 for text, 1 is no guidance, got 0.5"),
    "classes": ({"prompt": ("a",), "classes": ("3",)}, r"--classes must be left out with --pretrained, got \('3',\)"),
    "method": ({"prompt": ("a",), "method": "ddim"}, "--method must be left out with --pretrained, got 'ddim'"),
    "vae": ({"prompt": ("a",), "vae": "identity"}, "--vae must be left out with --pretrained, got 'identity'"),
    "weights": ({"prompt": ("a",), "weights": "ema"}, "--weights must be left out without a path, got 'ema'"),
}
FLAGS = {"scheduler": "DDIM", "height": 0, "width": 16, "negative": "a", "temporal-decoder": True, "over-time": False}


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_of_text_need_a_pipeline(tmp_path: Path, flag: str) -> None:
    given: dict[str, Any] = {flag.replace("-", "_"): FLAGS[flag]}
    with pytest.raises(SystemExit, match=f"sample: --(no-)?{flag} must be left out without --pretrained"):
        sample(str(tmp_path / "run"), out=str(tmp_path / "out"), **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_cost_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    kwargs, message = BAD[name]
    with pytest.raises(SystemExit, match=message):
        sample(**{"pretrained": str(folder), "out": str(tmp_path / "out"), **SMALL, **kwargs})
    assert not (tmp_path / "out").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def lose_a_shard(folder: Path) -> None:
    (folder / STEM).unlink()
    (folder / f"{STEM}.index.json").write_text('{"weight_map": {"x": "b"}}')


STEM = "diffusion_pytorch_model.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "scheduler": (lambda x: (x / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json is missing"),
    "vae": (lambda x: (x / "vae" / STEM).unlink(), "vae must hold diffusion_pytorch_model.safetensors or .*found con"),
    "t5": (
        lambda x: (x / "text_encoder" / "model.safetensors").unlink(),
        "text_encoder must hold model.safetensors or",
    ),
    "cut vae": (lambda x: cut(x / "vae" / STEM), "vae.diffusion_pytorch_model.safetensors must be whole, got"),
    "cut model": (lambda x: cut(x / "transformer" / STEM), "transformer.diffusion_.* must be whole, got"),
    "a list": (
        lambda x: (x / "vae" / "config.json").write_text("[1]"),
        r"config.json must be a JSON object, got \[1\]",
    ),
    "half": (
        lambda x: (x / "transformer" / "config.json").write_text("{"),
        "config.json must be a JSON object, got Exp",
    ),
    "index": (lambda x: (x / "model_index.json").write_text("{"), "model_index.json must be a JSON object"),
    "shards": (lambda x: lose_a_shard(x / "transformer"), "transformer must hold 1 files of weights, b is missing"),
    "channels": (
        lambda x: change(x / "vae" / "config.json", latent_channels=8),
        "in_channels of transformer must be 8",
    ),
    "width": (lambda x: change(x / "text_encoder" / "config.json", d_model=9), "caption_channels of tr.* must be 9"),
    "variance": (
        lambda x: change(x / "transformer" / "config.json", out_channels=4),
        "out_channels of .* must be 8, h",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_cost_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(diffusers.LattePipeline, "from_pretrained", None)
    damage, message = DAMAGE[name]
    shutil.copytree(folder, tmp_path / "x")
    damage(tmp_path / "x")
    with pytest.raises(SystemExit, match=message):
        sample(pretrained=str(tmp_path / "x"), prompt=("a",), out=str(tmp_path / "out"), **SMALL)
    assert not (tmp_path / "out").exists()


def test_what_fails_on_reading_is_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "x")
    (tmp_path / "x" / "vae" / STEM).unlink()
    (tmp_path / "x" / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"none")
    with pytest.raises(SystemExit, match=r"sample: pretrained must hold a LattePipeline, got .*x: .+") as error:
        sample(pretrained=str(tmp_path / "x"), prompt=("a",), out=str(tmp_path / "out"), **SMALL)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_another_transformer_is_named(folder: Path, tmp_path: Path) -> None:
    pipe = diffusers.LattePipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "x")
    config = tmp_path / "x" / "transformer" / "config.json"
    config.write_text(config.read_text().replace("LatteTransformer3DModel", "SD3Transformer2DModel"))
    with pytest.raises(SystemExit, match="transformer must be a LatteTransformer3DModel or LatteT2V, got 'SD3"):
        sample(pretrained=str(tmp_path / "x"), prompt=("a",), out=str(tmp_path / "out"), **SMALL)


def test_long_prompts_are_cut_with_a_warning(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    logging.getLogger("diffusers").propagate = True
    sample(pretrained=str(folder), prompt=("a " * 200,), out=str(tmp_path / "out"), **SMALL | {"steps": 1})
    assert "truncated" in caplog.text and "120" in caplog.text
