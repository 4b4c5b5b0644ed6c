"""Long films of prompts from a pipeline's folder: the T5's embeddings, the scheduler's process, our samplers."""

from pathlib import Path

import pytest
import torch

from latte_fast import patch
from latte_fast.diffusion import create_diffusion, guided
from latte_fast.diffusion.noise import Use, normal
from latte_fast.integrations.long_prompts import process_of, prompt_source
from latte_fast.sampling.request import Request, TextRequest
from latte_fast.testing import relative_error
from tests.cli.test_train import run
from tests.helpers.films import decode
from tests.helpers.pipelines import diffusers, pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompts") / "latte-1"
    pipeline().save_pretrained(out)
    return out


def test_a_clip_is_that_of_the_transformer_under_our_sampler() -> None:
    pipe = pipeline()
    patch(pipe)
    source = prompt_source(pipe, TextRequest(("a dog", "rain falls"), height=16, width=16))
    got, names = source.latents(Request(count=2, steps=4, scale=3.0, eta=0.0), [1])
    assert names == ["rain falls"] and source.batch(Request(batch=7)) == 1
    text, null = pipe.encode_prompt("rain falls", negative_prompt="", device="cpu", clean_caption=False)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        states = torch.cat([text, null])
        return pipe.transformer(x.transpose(1, 2), timestep=t, encoder_hidden_states=states).sample.transpose(1, 2)

    noise = normal(0, 1, (3, 4, 8, 8), Use.START)[None]
    with torch.no_grad():
        want = create_diffusion("4").ddim_sample_loop(guided(model, 3.0), noise.shape, noise, clip_denoised=False)
    assert relative_error(got, want) <= 1e-5


def test_each_kind_draws_films_from_a_folder(folder: Path, tmp_path: Path) -> None:
    given = ("--pretrained", str(folder), "--prompt", "a dog", "rain", "--height", "16", "--width", "16")
    given = (*given, "--frames", "5", "--samples", "2")
    for kind, more in (
        ("fifo", ("--steps", "3", "--long-films.no-lookahead")),
        ("windows", ("--steps", "2")),
        ("rollout", ("--steps", "2", "--long-films.insist")),
    ):
        out = tmp_path / kind
        run("sample", *given, "--long", kind, *more, "--out", str(out))
        assert [decode(p).shape for p in sorted(out.glob("*.mp4"))] == [(5, 16, 16, 3)] * 2
        assert '"rain"' in (out / "samples.json").read_text()

    def said(*args: str) -> str:
        return run("sample", *given, *args, "--out", str(tmp_path / "s"), ok=False)

    assert "long must be fifo or windows for a model trained without" in said("--long", "rollout")
    assert "--scheduler must be left out with --long, got 'DDIM'" in said("--long", "fifo", "--scheduler", "DDIM")
    assert "lookahead must be off for a model of 3 frames" in said("--long", "fifo")
    assert not (tmp_path / "s").exists()


def test_processes_that_are_not_ours_are_refused() -> None:
    assert process_of(diffusers.DDIMScheduler(prediction_type="v_prediction")).prediction == "v"
    cosine = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    assert process_of(cosine).schedule == "squaredcos_cap_v2"
    for other in (diffusers.DDIMScheduler(beta_schedule="scaled_linear"), diffusers.DDIMScheduler(beta_end=0.03)):
        with pytest.raises(ValueError, match="scheduler must have the linear or cosine schedule with --long, got"):
            process_of(other)
