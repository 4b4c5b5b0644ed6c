"""`latte-fast convert`: the same weights wherever they go, and nothing written where it is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latte_fast.cli.convert import convert
from latte_fast.models.checkpoint import load_checkpoint
from latte_fast.models.latte.model import Latte
from latte_fast.models.latte_t2v.adapter import LatteT2VAdapter
from latte_fast.models.latte_t2v.model import LatteT2V
from latte_fast.runs.load import Trained
from latte_fast.training import TrainConfig, Trainer, load_trained
from tests.helpers.tiny_latte import equal, fresh, refilled
from tests.helpers.tiny_run import tiny

SMALL = {"num_attention_heads": 3, "attention_head_dim": 24, "num_layers": 1, "sample_size": 8, "video_length": 3}
SMALL |= {"cross_attention_dim": 72, "caption_channels": 40}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    Trainer(tiny(folder, steps=2)).run()
    return folder


@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
def test_a_run_becomes_a_file(run: Path, tmp_path: Path, name: str, weights: str) -> None:
    convert(run, tmp_path / name, weights)  # type: ignore[arg-type]
    want = load_trained(run, weights).model
    got = Latte(**{**want.config.__dict__})
    load_checkpoint(got, tmp_path / name)
    assert equal(got, want) and not equal(load_trained(run, "ema" if weights == "model" else "model").model, got)
    if name.endswith(".pt"):  # as upstream's sample.py reads it
        assert torch.load(tmp_path / name, weights_only=True)["ema"].keys() == want.state_dict().keys()


def test_upstreams_file_becomes_safetensors(tmp_path: Path) -> None:
    model = refilled()
    compiled = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"ema": compiled, "model": fresh().state_dict()}, tmp_path / "ucf101.pt")
    convert(tmp_path / "ucf101.pt", tmp_path / "new" / "ucf101.safetensors")
    got = fresh()
    load_checkpoint(got, tmp_path / "new" / "ucf101.safetensors")
    assert equal(model, got)


def test_dtype(tmp_path: Path) -> None:
    model = refilled()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.pt", dtype="bfloat16")
    state = torch.load(tmp_path / "b.pt", weights_only=True)["ema"]
    assert all(torch.equal(value, state[key].float()) for key, value in model.bfloat16().float().state_dict().items())
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_text_to_video_becomes_a_folder(tmp_path: Path, dtype: str | None) -> None:
    model = LatteT2V(**SMALL)
    model.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", dtype=dtype)  # type: ignore[arg-type]
    got = LatteT2V.from_pretrained(tmp_path / "b")
    want: nn.Module = model.to(getattr(torch, dtype or "float32"))
    assert got.config == model.config and got.dtype == want.dtype and equal(want, got)


def test_a_run_on_captions_becomes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LatteT2V(**SMALL)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: {kind: latents, path: films, text: texts}")
    # without a checkpoint in the folder: refused before one is read
    with pytest.raises(SystemExit, match="out must be a folder for a text-to-video model"):
        convert(tmp_path / "run", tmp_path / "x.pt")
    trained = Trained(model, LatteT2VAdapter(model.config), TrainConfig(), 0)
    monkeypatch.setattr("latte_fast.runs.convert.load", lambda *_: trained)
    convert(tmp_path / "run", tmp_path / "x")
    assert equal(LatteT2V.from_pretrained(tmp_path / "x"), model)


def test_refusals_write_nothing(run: Path, tmp_path: Path) -> None:
    LatteT2V(**SMALL).save_pretrained(tmp_path / "text")
    torch.save(refilled().state_dict(), tmp_path / "a.pt")
    torch.save({"step": 3}, tmp_path / "odd.pt")
    torch.save({"ema": refilled().state_dict()}, tmp_path / "average.pt")
    save_file({"clip.mp4/mean": torch.zeros(1)}, tmp_path / "latents.safetensors")
    (tmp_path / "there.pt").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for source, out, message in (
        ("a.pt", "there.pt", "out must not exist"),
        ("a.pt", "text", "out must not exist"),
        ("a.pt", "b.bin", r"out must end in .safetensors or .pt for a model of classes, got b.bin"),
        (run, "b", "out must end in"),
        ("text", "b.safetensors", "out must be a folder"),
        ("odd.pt", "b.pt", "must hold tensors"),
        ("latents.safetensors", "b.pt", r"convert: source must hold a model of classes.*got .*clip.mp4/mean"),
        ("gone.pt", "b.pt", "convert: source must be a run's folder"),
        ("empty", "b.pt", "or a text-to-video model's folder with config.json, got"),
    ):
        with pytest.raises(SystemExit, match=message):
            convert(tmp_path / source, tmp_path / out)
    with pytest.raises(SystemExit, match=r"average.pt: must hold the weights themselves under 'model'"):
        convert(tmp_path / "average.pt", tmp_path / "b.pt", "model")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
