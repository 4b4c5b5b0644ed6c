"""Samples: what sample i is, chunks, windows, files, and refusals."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latte_fast import testing
from latte_fast.codecs.vae import open_vae
from latte_fast.config import preset
from latte_fast.diffusion import create_diffusion, guided
from latte_fast.diffusion.noise import StepNoise, Use, generator, normal
from latte_fast.media.pixels import to_pixels
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.models.latte.model import Latte
from latte_fast.runs.load import Trained
from latte_fast.sampling.chunks import chunks
from latte_fast.sampling.engine import generate
from latte_fast.sampling.files import sample_files
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import ModelSource, label_number, trained_source
from latte_fast.sampling.windows import window_starts, windowed
from latte_fast.training import DiffusionConfig, Ranks, TrainConfig, load_trained, write_config
from tests.helpers.counting import Count
from tests.helpers.tiny_latte import equal

SIZES = {"input_size": 8, "patch_size": 4, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def source() -> ModelSource:
    torch.manual_seed(0)
    model = testing.refill(Latte(**SIZES, num_frames=4, num_classes=3, extras=2)).eval()
    return trained_source(
        Trained(model, LatteAdapter(model.config, ["a", "b", "c"]), TrainConfig(), 0), open_vae("identity"), ("b", "2")
    )


def test_a_vae_of_other_channels_names_the_option() -> None:
    model = Latte(**SIZES | {"in_channels": 4}, num_frames=4)
    message = r"vae must have the model's 4 channels, got 3; give --vae the folder that encoded the data"
    with pytest.raises(ValueError, match=message):
        trained_source(Trained(model, LatteAdapter(model.config), TrainConfig(), 0), open_vae("identity"))


def test_chunks_cover_every_sample_once() -> None:
    for ranks in (1, 2, 3, 4):
        dealt = [chunk for rank in range(ranks) for chunk in chunks(11, 4, rank, ranks)]
        kept = sorted(n for chunk in dealt for n in chunk.numbers[: chunk.wanted])
        assert kept == list(range(11)) and all(len(chunk.numbers) == 4 and chunk.wanted for chunk in dealt)
        in_step = [chunks(11, 4, rank, ranks, in_step=True) for rank in range(ranks)]
        assert {len(mine) for mine in in_step} == {-(-3 // ranks)}
        surplus = [chunk for mine in in_step for chunk in mine if chunk not in dealt]
        assert all(len(chunk.numbers) == 4 and not chunk.wanted for chunk in surplus)
    for count, batch, wrong in ((0, 4, "count"), (11, 0, "batch")):
        with pytest.raises(ValueError, match=f"chunks: {wrong} must be positive, got 0"):
            chunks(count, batch)
    assert [(chunk.numbers, chunk.wanted) for chunk in chunks(1, 1)] == [([0], 1)]


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm++"])
def test_sample_depends_on_its_number_alone(source: ModelSource, method: Any) -> None:
    request = Request(batch=3, steps=4, method=method, eta=1.0 if method == "ddim" else 0.0)
    together, names = source.draw(request, [0, 1, 2])
    alone, _ = source.draw(request, [2, 0, 1])
    assert names == ["b", "c", "b"]
    assert (together[[2, 0, 1]].int() - alone.int()).abs().max() <= 1
    other, _ = source.draw(replace(request, seed=1), [0, 1, 2])
    assert (together != other).float().mean() > 0.2


def test_step_noise_is_each_samples_own() -> None:
    one, two = StepNoise(7, [4, 9]), StepNoise(7, [9])
    x = torch.zeros(2, 3, 5)
    for step in range(3):
        drawn = one(x)
        assert torch.equal(drawn[1:], two(x[1:])) and torch.equal(drawn[0], normal(7, 4, (3, 5), Use.STEP, step))
    with pytest.raises(ValueError, match="x must hold 2 samples, got 3"):
        one(torch.zeros(3, 1))
    elsewhere = torch.zeros(1, 3, dtype=torch.bfloat16, device="meta")
    assert two(elsewhere).device == elsewhere.device and two(elsewhere).dtype == elsewhere.dtype


def test_numbers_of_a_seed_stay_what_they_were() -> None:
    """From release to release: runs are resumed and samples asked for again."""
    assert [use.value for use in (Use.NOISE, Use.TIME, Use.LATENT, Use.START, Use.STEP, Use.LABEL)] == [*range(6)]
    drawn = generator((1 << 64) - 1, 5, Use.STEP, step=3).bit_generator.random_raw(2)
    assert drawn.tolist() == [250127407959264444, 4093584343158893063]


def test_guidance_needs_a_null_class(source: ModelSource) -> None:
    model = Latte(**SIZES, num_frames=4, num_classes=3, extras=2, class_dropout_prob=0.0).eval()
    plain = trained_source(Trained(model, LatteAdapter(model.config), TrainConfig(), 0), open_vae("identity"))
    with pytest.raises(ValueError, match="guidance must be 1 for a model trained without dropped labels"):
        plain.draw(Request(steps=2), [0])
    plain.draw(Request(steps=2, scale=1.0), [0])


def test_windows_cover_and_blend() -> None:
    assert window_starts(16, 16, 8) == [0]
    assert window_starts(40, 16, 8) == [0, 8, 16, 24]
    assert window_starts(21, 16, 8) == [0, 5]
    with pytest.raises(ValueError, match="frames must be at least the model's 16, got 9"):
        window_starts(9, 16, 8)
    for overlap in (-1, 16):
        with pytest.raises(ValueError, match=rf"overlap must be in \[0, 16\), got {overlap}"):
            window_starts(40, 16, overlap)
    seen: list[tuple[int, ...]] = []

    def double(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append((len(x), len(t), len(y)))
        return 2 * x + y.view(-1, 1, 1, 1, 1)

    x, y = torch.randn(2, 11, 1, 2, 2), torch.tensor([1.0, 5.0])
    out = windowed(double, 4, 11)(x, torch.zeros(2), y=y)
    torch.testing.assert_close(out, 2 * x + y.view(2, 1, 1, 1, 1))
    assert seen == [(10, 10, 10)]
    # windows that disagree: from the middle of one to the middle of the next in even steps
    apart = windowed(lambda x, t: torch.arange(len(x)).view(-1, 1, 1, 1, 1).expand_as(x).to(x.dtype), 4, 6)
    blended = apart(torch.zeros(2, 6, 1, 2, 2, dtype=torch.float64), torch.zeros(2))
    want = torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(blended[:, :, 0, 0, 0], torch.stack([want, want + 2]), rtol=1e-6, atol=1e-7)


def test_windows_copy_their_weights_once() -> None:
    """A copy from the host at every step would make it wait for a GPU."""
    model = windowed(lambda x, t: x, 4, 11)
    x, t = torch.empty(2, 11, 1, 2, 2, device="meta"), torch.empty(2, device="meta")
    with Count() as count:
        model(x, t)
        assert count.ran["_to_copy"] == 1
        model(x, t)
    assert count.ran["_to_copy"] == 1


def test_longer_clips_are_made_of_windows(source: ModelSource) -> None:
    videos, _ = source.draw(Request(steps=3, frames=9), [0, 1])
    assert videos.shape == (2, 9, 8, 8, 3) and videos.dtype == torch.uint8


def test_generate_without_conditions_equals_the_loop() -> None:
    diffusion = create_diffusion("5", learn_sigma=False)
    model = partial(lambda x, t: 0.1 * x)
    want = torch.stack([normal(3, n, (2, 1, 4, 4), Use.START) for n in (0, 1)])
    got = generate(diffusion, model, [0, 1], (2, 1, 4, 4), seed=3, method="ddim", clip_denoised=True)
    torch.testing.assert_close(got, diffusion.ddim_sample_loop(model, want.shape, noise=want))


@pytest.mark.parametrize(("method", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.6), ("dpm++", 0.0)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_generate_equals_the_loop_over_a_guided_model(method: str, eta: float, scale: float) -> None:
    """In the model's dtype, with each sample's own noise; without guidance the null condition is not computed."""
    diffusion, numbers, shape = create_diffusion("4", learn_sigma=False), [7, 2], (2, 4, 4, 4)
    condition, null = {"y": torch.tensor([0.5, 0.25])}, {"y": torch.tensor([0.0, 0.125])}
    seen = []

    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append((x.dtype, len(x)))
        return (x + y.view(-1, 1, 1, 1, 1)).tanh()

    given = {"seed": 3, "method": method, "eta": eta, "scale": scale, "dtype": torch.bfloat16}
    got = generate(diffusion, model, numbers, shape, condition=condition, null=null, **given)  # type: ignore[arg-type]
    assert got.dtype == torch.float32 and seen == [(torch.bfloat16, 2 if scale == 1 else 4)] * 4

    def wide(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return model(x.bfloat16(), t, y).float()

    more = {"ddpm": {"draw": StepNoise(3, numbers)}, "ddim": {"draw": StepNoise(3, numbers), "eta": eta}}
    want = diffusion.sample(
        method,
        wide if scale == 1 else guided(wide, scale),
        (2, *shape),
        noise=torch.stack([normal(3, number, shape, Use.START) for number in numbers]),
        clip_denoised=False,
        model_kwargs=condition if scale == 1 else {"y": torch.cat([condition["y"], null["y"]])},
        **more.get(method, {}),
    )
    assert torch.equal(got, want)
    if scale != 1:
        for lacking, found in ((None, "None"), ({"text": null["y"]}, r"\['text'\]")):
            with pytest.raises(ValueError, match=f"null must hold y for guidance, got {found}"):
                generate(diffusion, model, numbers, shape, condition=condition, null=lacking, **given)  # type: ignore


@pytest.mark.parametrize("factor", [1, 8])
def test_all_that_is_asked_for_reaches_the_sampler(monkeypatch: pytest.MonkeyPatch, factor: int) -> None:
    """The trained process in fewer steps, the model's dtype, and clipping of pixels alone."""
    seen: dict[str, Any] = {}

    def record(diffusion: Any, model: Any, numbers: Any, shape: Any, **kwargs: Any) -> torch.Tensor:
        seen.update(kwargs, diffusion=diffusion, numbers=numbers, shape=shape)
        return torch.zeros(len(numbers), *shape)

    monkeypatch.setattr("latte_fast.sampling.source.generate", record)
    process = DiffusionConfig(schedule="squaredcos_cap_v2", steps=40, prediction="v")
    model = Latte(**SIZES, num_frames=4, num_classes=3, extras=2).eval()
    trained = Trained(model, LatteAdapter(model.config), TrainConfig(diffusion=process), 0)
    vae: Any = SimpleNamespace(channels=3, factor=factor, decode=lambda x: x)
    source = trained_source(trained, vae, ("1",), torch.bfloat16)
    assert {p.dtype for p in trained.model.parameters()} == {torch.bfloat16}
    video, _ = source.draw(Request(seed=5, steps=7, method="ddim", scale=3.0, eta=0.25), [4, 6])
    assert video.unique().tolist() == [128]
    diffusion, condition, null = (seen.pop(name) for name in ("diffusion", "condition", "null"))
    want = create_diffusion("7", "squaredcos_cap_v2", diffusion_steps=40, prediction="v")
    assert diffusion.timestep_map == want.timestep_map and (diffusion.tables.betas == want.tables.betas).all()
    assert (diffusion.prediction, diffusion.variance) == ("v", "learned_range")
    assert {name: y.tolist() for name, y in condition.items()} == {"y": [1, 1]}
    assert {name: y.tolist() for name, y in null.items()} == {"y": [3, 3]}
    assert seen == {
        "numbers": [4, 6], "shape": (4, 3, 8, 8), "seed": 5, "method": "ddim", "scale": 3.0, "eta": 0.25,
        "clip_denoised": factor == 1, "device": torch.device("cpu"), "dtype": torch.bfloat16, "step_keywords": (),
        "part": 0,
    }  # fmt: skip


def test_pixels_are_rounded_as_upstream_rounds() -> None:
    levels = torch.tensor([-1.5, -1.0, -0.996, 0.0, 0.5, 1.0, 1.5])
    assert to_pixels(levels.view(1, 1, 1, 7).expand(1, 3, 1, 7))[0, 0, :, 0].tolist() == [0, 0, 1, 128, 191, 255, 255]


@pytest.mark.parametrize("kind", ["mp4", "gif", "png", "npz"])
def test_files(source: ModelSource, tmp_path: Path, kind: Any) -> None:
    request = Request(count=3, batch=2, steps=2, format=kind, seed=6)
    sample_files(source, request, tmp_path / "out", Ranks())
    names = {p.name for p in (tmp_path / "out").iterdir()}
    films = {f"{n:06d}.{kind}" for n in range(3)}
    assert names == {"samples.json"} | ({"000000-000001.png", "000002-000002.png"} if kind == "png" else films)
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["names"] == ["b", "c", "b"]
    if kind == "npz":
        stored = np.load(tmp_path / "out" / "000001.npz")
        assert stored["video"].shape == (4, 8, 8, 3) and stored["name"] == "c"
        assert (stored["number"], stored["seed"]) == (1, request.seed)
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="out must not hold these samples yet"):
        sample_files(source, replace(request, seed=5), tmp_path / "out", Ranks())
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    "given", [{"num_classes": 9, "extras": 2}, {"learn_sigma": False, "in_channels": 3}, {"class_dropout_prob": 0.5}]
)
def test_published_files_are_recognised(tmp_path: Path, given: dict[str, Any]) -> None:
    """A width that a preset has, everything else read from the shapes."""
    keywords = preset("S", 4) | {"depth": 4, "input_size": 16, "num_frames": 5} | given
    model = testing.refill(Latte(**keywords))
    torch.save({"ema": model.state_dict(), "model": {}}, tmp_path / "ucf101.pt")
    trained = load_trained(tmp_path / "ucf101.pt")
    assert trained.model.config == replace(model.config, class_dropout_prob=0.1)
    assert equal(trained.model, model)
    assert not trained.model.training and (trained.classes, trained.step) == ([], 0)
    assert asdict(trained.config.diffusion)["schedule"] == "linear"


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    torch.save(Latte(**SIZES, num_frames=4).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: width must be one of 384, 768, 1024, 1152, got 16"):
        load_trained(tmp_path / "a.pt")
    torch.save(Latte(**SIZES, num_frames=4, time_pos="rope").state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: must hold temp_embed, as a Latte of one frame a patch does"):
        load_trained(tmp_path / "a.pt")
    write_config(tmp_path / "config.yaml", TrainConfig())
    with pytest.raises(ValueError, match="path must have a whole checkpoint in checkpoints/"):
        load_trained(tmp_path)
    with pytest.raises(ValueError, match="load: weights must be ema or model, got 'both'"):
        load_trained(tmp_path / "a.pt", "both")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "samples must be at least 1"),
        ({"method": "plms"}, "method must be one of ddpm, ddim, dpm++"),
        ({"format": "avi"}, "format must be one of mp4, gif, png, npz"),
        ({"fps": 0}, "fps must be from 0.01 to 1000, got 0"),
        ({"fps": float("nan")}, "fps must be from 0.01 to 1000, got nan"),
        ({"scale": -1}, "guidance must be at least 0, and finite, got -1"),
        ({"scale": float("nan")}, "guidance must be at least 0, and finite, got nan"),
        ({"seed": 1 << 64}, "seed must be in [0, 2^64), got 18446744073709551616"),
        ({"eta": 1.5}, "eta must be in [0, 1], got 1.5"),
        ({"eta": 0.5, "method": "ddpm"}, "eta must be left out for ddpm, as it is ddim's, got 0.5"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
    ],
)
def test_request_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Request(**given)
    assert message in str(error.value)


def test_source_refuses(source: ModelSource, tmp_path: Path) -> None:
    for wanted, message in (
        ("d", "classes must be below 3 or one of a, b, c, got 'd'"),
        ("3", "below 3"),
        ("²", "got '²'"),
    ):
        with pytest.raises(ValueError, match=message):
            label_number(source.adapter, wanted)
    for steps in (1, 1001):
        with pytest.raises(ValueError, match=rf"steps must be in \[2, 1000\], got {steps}"):
            source.draw(Request(steps=steps), [0])
    with pytest.raises(ValueError, match="path must be a run's folder"):
        load_trained(tmp_path)
