"""Text to video through the trainer's config: captions embedded beforehand, no text encoder in the run."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latte_fast.cli.sample import sample
from latte_fast.codecs.vae import open_vae
from latte_fast.data import DataConfig
from latte_fast.data.encode_text import encode_text
from latte_fast.data.text import Texts
from latte_fast.models.latte_t2v.diffusers_folder import STEM
from latte_fast.models.latte_t2v.initialize import initialize
from latte_fast.models.latte_t2v.model import LatteT2V
from latte_fast.quantization.fp8_training import convert_to_fp8
from latte_fast.reference.latte_t2v import LatteT2V as OracleT2V
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import trained_source
from latte_fast.training import ModelConfig, TrainConfig, Trainer, load_trained
from tests.helpers.texts import SHAPES, Letters, shapes_texts
from tests.helpers.tiny_run import MODEL, losses, tiny


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes_texts(tmp_path_factory.mktemp("texts") / "out")


def text_config(out: Path, texts: Path, **changes: Any) -> TrainConfig:
    return tiny(out, data=DataConfig(kind="shapes", clips=11, text=str(texts)), **changes)


def test_fp8_leaves_the_text_s_layers(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caption's rows are no multiple of 16, as the weight gradients of an fp8 layer need."""
    converted: list[str] = []

    def convert(model: torch.nn.Module, module_filter_fn: Any) -> None:
        converted.extend(name for name, module in model.named_modules() if module_filter_fn(module, name))

    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.float8", SimpleNamespace(convert_to_float8_training=convert))
    convert_to_fp8(Trainer(text_config(tmp_path / "run", texts)).objective.learner.model)
    parts = {name.split(".", 2)[2] for name in converted}
    own = {f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    assert parts == own | {"attn2.to_q", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"}


@pytest.mark.parametrize("images", [0, 2])
def test_loss_is_the_oracle_s(images: int, texts: Path, tmp_path: Path) -> None:
    """A batch's loss and gradients, half the captions dropped, against the plain model told the same by hand."""
    trainer = Trainer(text_config(tmp_path / "run", texts, images=images))
    torch.manual_seed(0)
    for p in trainer.objective.learner.model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    batch = next(trainer.batches())
    assert batch["text"].shape == (4, 1 + images, 6, 12) and batch["text_mask"].shape == (4, 1 + images, 6)
    read = Texts(texts)
    for i in range(4):
        for j, label in enumerate([int(batch["label"][i]), *batch.get("image_labels", torch.empty(4, 0))[i].tolist()]):
            want = read.null if batch["drop"][i, j] else read[int(label)][0]
            assert torch.equal(batch["text"][i, j], want)
            assert torch.equal(batch["text_mask"][i, j], read[int(label)][1])
    batch["text_mask"][1::2, ..., 3:] = False  # captions shorter than the others
    loss = trainer.losses("model", batch)["loss"]
    loss.backward()
    oracle = OracleT2V(**trainer.objective.adapter.config.__dict__)
    oracle.load_state_dict(trainer.objective.learner.model.state_dict())
    text, mask = (batch[name] if images else batch[name][:, 0] for name in ("text", "text_mask"))

    def plain(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = oracle(x.transpose(1, 2), t, text, mask, use_image_num=images)
        return out.transpose(1, 2)

    terms = trainer.objective.diffusion.training_losses(plain, batch["video"], batch["t"], {}, batch["noise"])
    want_loss = terms["loss"].mean()
    want_loss.backward()
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    grads = dict(oracle.named_parameters())
    for name, p in trainer.objective.learner.model.named_parameters():
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, grads[name].grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_trains_stops_and_goes_on(texts: Path, tmp_path: Path) -> None:
    """The loss falls; stopped, resumed, accumulated and read by workers, the losses are the same."""
    preview = replace(tiny("").sample, every=6, count=3, steps=2)
    assert Trainer(text_config(tmp_path / "whole", texts, sample=preview)).run() == 12
    whole = losses(tmp_path / "whole")
    assert len(whole) == 12 and whole[-1] < whole[0]
    Trainer(text_config(tmp_path / "parts", texts, steps=5, optim=replace(tiny("").optim, rate="constant"))).run()
    Trainer(text_config(tmp_path / "rest", texts, optim=replace(tiny("").optim, rate="constant"), workers=2)).run()
    resumed = text_config(tmp_path / "parts", texts, optim=replace(tiny("").optim, rate="constant"), workers=2)
    Trainer(resumed, resume=True).run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "rest")
    Trainer(text_config(tmp_path / "micro", texts, micro_batch=2)).run()
    np.testing.assert_allclose(losses(tmp_path / "micro"), whole, rtol=1e-5)
    assert len(list((tmp_path / "whole" / "samples").glob("*.png"))) == 2


@pytest.mark.parametrize("precision", ["bf16", "bf16-weights"])
def test_precisions_and_recomputation(precision: str, texts: Path, tmp_path: Path) -> None:
    model = replace(MODEL, recompute="elementwise")
    Trainer(text_config(tmp_path / "run", texts, precision=precision, model=model)).run()
    Trainer(text_config(tmp_path / "fp32", texts)).run()
    assert losses(tmp_path / "run") != losses(tmp_path / "fp32"), "nothing ran in bf16"
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "fp32"), rtol=1e-3)


def test_fresh_model_says_nothing_and_ignores_text(texts: Path, tmp_path: Path) -> None:
    trainer = Trainer(text_config(tmp_path / "run", texts))
    batch = next(trainer.batches())
    given = trainer.objective.adapter.conditions(batch, 0)
    assert not trainer.objective.forward(batch["video"], batch["t"], **given).any()
    assert trainer.objective.adapter.config.video_length == 2 and trainer.objective.adapter.config.sample_size == 8


def test_sampled_by_its_captions(texts: Path, tmp_path: Path) -> None:
    """From the run's folder: the same clip whatever draws it; captions by name and number."""
    Trainer(text_config(tmp_path / "run", texts)).run()
    trained = load_trained(tmp_path / "run")
    assert isinstance(trained.model, LatteT2V) and trained.step == 12
    source = trained_source(trained, open_vae("identity"), ("a circle that goes up", "3"))
    request = Request(steps=2, scale=3.0)
    video, names = source.draw(request, [0, 1])
    assert names == ["a circle that goes up", list(SHAPES.values())[3]]
    alone, _ = source.draw(replace(request, scale=1.0), [0])
    assert video.shape == (2, 2, 8, 8, 3) and alone.shape[0] == 1
    longer, _ = source.draw(replace(request, frames=3), [0])
    assert longer.shape == (1, 3, 8, 8, 3)
    sample(str(tmp_path / "run"), out=str(tmp_path / "out"), prompt=("a square that goes left",), samples=2, steps=2)
    names = json.loads((tmp_path / "out" / "samples.json").read_text())["names"]
    assert names == ["a square that goes left"] * 2
    with pytest.raises(SystemExit, match=r"captions must be below 12 or one of .*got 'a dog'; --pretrained takes any"):
        sample(str(tmp_path / "run"), out=str(tmp_path / "no"), prompt=("a dog",))
    assert not (tmp_path / "no").exists()


def donor(folder: Path, kind: str, **changes: Any) -> LatteT2V:
    """A folder of another model for captions of 12 channels: a Latte, or a PixArt-alpha without time blocks."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 4,
                             "in_channels": 3, "out_channels": 6, "sample_size": 8, "caption_channels": 12,
                             "cross_attention_dim": 16, "video_length": 2}  # fmt: skip
    sizes |= changes
    model = LatteT2V(**sizes)
    state = {k: v for k, v in model.state_dict().items() if kind == "LatteT2V" or not k.startswith("temporal")}
    folder.mkdir()
    save_file({k: v.clone() for k, v in state.items()}, folder / f"{STEM}.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": kind} | sizes))
    return model


@pytest.mark.parametrize("kind", ["LatteT2V", "PixArtTransformer2DModel"])
def test_starts_from_a_folder(kind: str, texts: Path, tmp_path: Path) -> None:
    """Which gives the sizes too; pictures of a PixArt-alpha stay what they were but for the table of time."""
    model = donor(tmp_path / "donor", kind)
    said: list[str] = []
    config = text_config(tmp_path / "run", texts, model=ModelConfig(), pretrained=str(tmp_path / "donor"))
    trainer = Trainer(config, say=said.append)
    own = trainer.objective.learner.model.state_dict()
    assert "taken" in said[0] and trainer.objective.adapter.config.num_layers == 1
    for key, value in model.state_dict().items():
        assert torch.equal(own[key], value) or (key.startswith("temporal") and kind != "LatteT2V"), key
    x, t, text = torch.randn(2, 3, 2, 8, 8), torch.tensor([5, 900]), torch.randn(2, 6, 12)
    with torch.no_grad():
        got = trainer.objective.learner.model.eval()(x, t, text).sample
        if kind == "LatteT2V":
            assert torch.equal(got, model.eval()(x, t, text).sample)
        else:
            out = trainer.objective.learner.model(x[:, :, :1], t, text, enable_temporal_attentions=True).sample
            pictures = model.eval()(x[:, :, :1], t, text, enable_temporal_attentions=False).sample
            assert torch.equal(out, pictures)
    assert not (tmp_path / "run").exists()
    wrong = replace(config, model=ModelConfig(hidden_size=32))
    with pytest.raises(ValueError, match="must have shape"):
        Trainer(wrong)


@pytest.mark.parametrize("kind", ["LatteT2V", "PixArtTransformer2DModel"])
@pytest.mark.parametrize("size", [8, 16])
def test_starts_as_the_donor_at_any_size(kind: str, size: int, texts: Path, tmp_path: Path) -> None:
    """Whose table is for 16, with layers of another form; and samples have the side of the data."""
    model = donor(tmp_path / "donor", kind, sample_size=16, norm_eps=0.1, attention_bias=False).eval()
    given = {"model": ModelConfig(), "pretrained": str(tmp_path / "donor"), "size": size, "steps": 1}
    trainer = Trainer(text_config(tmp_path / "run", texts, **given))
    x, t, text = torch.randn(2, 3, 2, size, size), torch.tensor([5, 900]), torch.randn(2, 6, 12)
    over_time = kind == "LatteT2V"
    with torch.no_grad():
        got = trainer.objective.learner.model.eval()(x, t, text, enable_temporal_attentions=over_time).sample
        assert torch.equal(got, model(x, t, text, enable_temporal_attentions=over_time).sample)
    trainer.run()
    source = trained_source(load_trained(tmp_path / "run"), open_vae("identity"))
    assert source.draw(Request(steps=2), [0])[0].shape == (1, 2, size, size, 3)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_starts_from_what_older_versions_saved(form: str, texts: Path, tmp_path: Path) -> None:
    donor(tmp_path / "donor", "LatteT2V")
    file = tmp_path / "donor" / f"{STEM}.safetensors"
    save_file(load_file(file) | {"caption_projection.y_embedding": torch.zeros(6, 12)}, file)
    LatteT2V.from_pretrained(tmp_path / "donor")
    path = file if form == "file" else tmp_path / "donor"
    model = MODEL if form == "file" else ModelConfig()
    trainer = Trainer(text_config(tmp_path / "run", texts, model=model, pretrained=str(path)))
    assert torch.equal(
        trainer.objective.learner.model.state_dict()["proj_out.weight"], load_file(file)["proj_out.weight"]
    )


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "variant": ({"model": replace(MODEL, variant=2)}, "model.variant must be 1 for text to video, got 2"),
    "patch": ({"size": 10}, "model.patch_size must be a divisor of the data's side of 10, got 4"),
    "depth": ({"model": replace(MODEL, depth=3)}, "model.depth must be even"),
    "heads": ({"model": replace(MODEL, num_heads=3)}, "model.hidden_size must be a multiple of the 3 heads, got 16"),
    "sizes": ({"model": ModelConfig()}, "model.patch_size must be given where model.preset is not"),
    "pretrained": ({"pretrained": "none"}, "pretrained must be a file, or a model's folder, got 'none'"),
    "text": ({"data": DataConfig(kind="shapes", text="none")}, "which has no index.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_runs_cost_nothing(name: str, texts: Path, tmp_path: Path) -> None:
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Trainer(replace(text_config(tmp_path / "run", texts), **changes))
    assert not (tmp_path / "run").exists()


def test_the_pipeline_s_own_embeddings(tmp_path: Path) -> None:
    """encode-text on a pipeline's folder gives what the pipeline tells its transformer; the run goes back in."""
    from latte_fast.cli.encode_text import encode_text as command
    from tests.helpers.pipelines import diffusers, pipeline

    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "latte-1")
    captions = {name: f"  A {name} " for name in SHAPES}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    command(tmp_path / "captions.json", tmp_path / "latte-1", tmp_path / "texts", dtype="float32", batch=5)
    texts = Texts(tmp_path / "texts")
    assert (texts.channels, texts.tokens) == (40, 120)
    for number in (0, 7):
        positive, negative = pipe.encode_prompt(texts.captions[number], negative_prompt="", clean_caption=False)
        text, mask = texts[number]
        torch.testing.assert_close(text[mask], positive[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(texts.null[: len(positive[0])], negative[0], rtol=1e-5, atol=1e-6)
    # the run in the pipeline's place: latents of its VAE's 4 channels
    size = {"size": 16, "vae": str(tmp_path / "latte-1" / "vae"), "frames": 3}
    model = ModelConfig(patch_size=2, hidden_size=16, depth=2, num_heads=2)
    Trainer(text_config(tmp_path / "run", tmp_path / "texts", model=model, steps=3, **size)).run()
    out = tmp_path / "out"
    shape = {"height": 16, "width": 16, "steps": 2, "format": "npz", "seed_rule": "old"}
    sample(str(tmp_path / "run"), pretrained=str(tmp_path / "latte-1"), prompt=("rain",), out=str(out), **shape)
    pipe.register_modules(transformer=load_trained(tmp_path / "run").model)
    noise = torch.Generator().manual_seed(0)
    video = pipe("rain", num_inference_steps=2, height=16, width=16, video_length=3, guidance_scale=7.5,
                 generator=noise, clean_caption=False, output_type="pt").frames[0]  # fmt: skip
    want = (video * 255 + 0.5).clamp(0, 255).to(torch.uint8).movedim(1, -1).numpy()
    got = np.load(out / "000000.npz")["video"]
    assert np.abs(got.astype(int) - want).max() <= 1
    assert isinstance(pipe, diffusers.LattePipeline)
    with pytest.raises(SystemExit, match="path must hold a text-to-video model beside --pretrained"):
        Trainer(tiny(tmp_path / "classes", steps=1)).run()
        sample(str(tmp_path / "classes"), pretrained=str(tmp_path / "latte-1"), prompt=("rain",), out=str(out / "2"))


def test_initialisation_is_pixart_s() -> None:
    torch.manual_seed(0)
    model = LatteT2V(num_attention_heads=2, attention_head_dim=32, num_layers=2, cross_attention_dim=64,
                     sample_size=8, caption_channels=48)  # fmt: skip
    initialize(model)
    for name, p in model.named_parameters():
        if name.endswith("bias") or "attn2.to_out" in name or name == "proj_out.weight":
            assert not p.any(), name
        else:
            assert p.std() > 1e-3, name
    assert abs(model.adaln_single.linear.weight.std() - 0.02) < 1e-3


def test_embeddings_of_a_model_that_needs_no_texts(texts: Path, tmp_path: Path) -> None:
    """A run whose captions are gone is still loaded for the pipeline."""
    own = tmp_path / "own"
    encode_text(SHAPES, own, Letters(), dtype="float32")
    Trainer(text_config(tmp_path / "run", own, steps=1)).run()
    for path in own.iterdir():
        path.unlink()
    assert isinstance(load_trained(tmp_path / "run").model, LatteT2V)
    with pytest.raises(ValueError, match=r"has no index\.json"):
        trained_source(load_trained(tmp_path / "run"), open_vae("identity"))
