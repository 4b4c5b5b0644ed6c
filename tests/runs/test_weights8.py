"""Files of 8-bit weights: written and loaded without 16-bit weights on the way; damaged ones are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import latte_fast
from latte_fast.cli.quantize import quantize as command
from latte_fast.models.checkpoint import CheckpointError, load_checkpoint, read_about
from latte_fast.models.families import adapter_of
from latte_fast.modules.linear import joined8
from latte_fast.modules.linear8 import FP8, Linear8
from latte_fast.runs.config import TrainConfig
from latte_fast.runs.load import Trained, about_of
from latte_fast.runs.weights8 import save_8bit
from tests.helpers import t2v
from tests.helpers.tiny_latte import refilled


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = refilled().eval()
    run = Trained(model, adapter_of(model), TrainConfig(), 7)
    latte_fast.quantize(model, keep=False)
    save_8bit(model, tmp_path / "eight.safetensors", about_of(run))
    return tmp_path / "eight.safetensors"


def clip() -> tuple:
    return torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([3, 500])


@torch.no_grad()
def test_round_trip(file: Path) -> None:
    want = refilled().eval()
    latte_fast.quantize(want)
    loaded = latte_fast.load(file)
    assert loaded.step == 7 and not loaded.model.training
    assert torch.equal(loaded.model(*clip()), want(*clip()))
    eight = [layer for layer in loaded.model.modules() if type(layer) is Linear8]
    assert len(eight) == 6 and all(layer.before is None for layer in eight)
    with pytest.raises(ValueError, match="were not kept; load the model again"):
        latte_fast.unquantize(loaded.model)


def test_no_16_bit_weight_exists_on_the_way(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every linear layer is made on the meta device, so that none has memory before the file's."""
    made: list[str] = []
    init = nn.Linear.__init__

    def watched(self: nn.Linear, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(self.weight.device.type)

    monkeypatch.setattr(nn.Linear, "__init__", watched)
    model = latte_fast.load(file).model
    assert set(made) == {"meta"}
    assert not [name for name, p in [*model.named_parameters(), *model.named_buffers()] if p.is_meta]
    # 8-bit values are a byte a number
    layer = model.blocks[0].mlp.fc1
    assert layer.weight.dtype == FP8 and layer.weight.untyped_storage().nbytes() == 64 * 256


@torch.no_grad()
def test_text_model(tmp_path: Path) -> None:
    model = t2v.pair(num_attention_heads=2, cross_attention_dim=48)[1].eval()
    x, t, text, mask = t2v.inputs(3, 8, 8)
    run = Trained(model, adapter_of(model), TrainConfig(), 0)
    latte_fast.quantize(model)
    want = model(x, t, text, encoder_attention_mask=mask, return_dict=False)[0]
    save_8bit(model, tmp_path / "text.safetensors", about_of(run))
    loaded = latte_fast.load(tmp_path / "text.safetensors").model
    attn = loaded.transformer_blocks[0].attn1
    assert joined8((attn.to_q, attn.to_k, attn.to_v)) is not None
    assert torch.equal(loaded(x, t, text, encoder_attention_mask=mask, return_dict=False)[0], want)


@torch.no_grad()
@pytest.mark.parametrize("text", [False, True])
def test_files_of_int8(text: bool, tmp_path: Path) -> None:
    """Loaded as Linear8 of integers, not as a token transformer's layers; a file of other values is named."""
    model = (t2v.pair(num_attention_heads=2, cross_attention_dim=48)[1] if text else refilled()).eval()
    x, t, words, mask = t2v.inputs(3, 8, 8)
    inputs = ((x, t, words), {"encoder_attention_mask": mask, "return_dict": False}) if text else (clip(), {})
    run = Trained(model, adapter_of(model), TrainConfig(), 0)
    latte_fast.quantize(model, "int8")
    want, file = model(*inputs[0], **inputs[1]), tmp_path / "int8.safetensors"
    save_8bit(model, file, about_of(run))
    assert read_about(file)["precision"] == "int8"
    loaded = latte_fast.load(file).model
    got = loaded(*inputs[0], **inputs[1])
    assert torch.equal(*(pair[0] for pair in (got, want))) if text else torch.equal(got, want)
    eight = [layer for layer in loaded.modules() if type(layer) is Linear8]
    assert len(eight) == (20 if text else 6) and {layer.precision for layer in eight} == {"int8"}
    with pytest.raises(CheckpointError, match=r"weight must be of int8, found torch\.float8_e4m3fn"):
        latte_fast.load(edited(file, lambda s, a: [s.__setitem__(k, v.float().to(FP8)) for k, v in s.items()
                                                   if v.dtype == torch.int8]))  # fmt: skip


def edited(file: Path, change: Any) -> Path:
    state, about = load_file(file), read_about(file)
    change(state, about)
    out = file.with_name("edited.safetensors")
    save_file(state, out, metadata={"format": "pt", "latte_fast": json.dumps(about)})
    return out


QKV = "blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s, a: s[f"{QKV}.weight_scale"].__setitem__(3, 0.0), r"qkv\.weight_scale must be positive, finite"),
        (lambda s, a: s[f"{QKV}.weight_scale"].__setitem__(3, float("nan")), r"weight_scale must be positive, finite"),
        (lambda s, a: s[f"{QKV}.weight"].view(torch.uint8).view(-1).__setitem__(5, 0xFF), r"weight must be finite"),
        (lambda s, a: s.__setitem__(f"{QKV}.weight", s[f"{QKV}.weight"].float()), r"must be of float8_e4m3fn"),
        (lambda s, a: s.pop(f"{QKV}.weight_scale"), r"not this model: .*weight_scale must have shape"),
        (lambda s, a: a["model"].__setitem__("hidden_size", 128), r"must have shape"),
        (lambda s, a: a["layers_8bit"].append("blocks.9.attn.qkv"), r"not this model: 8-bit layer 'blocks.9.attn.qkv'"),
        (lambda s, a: a["model"].__setitem__("depth", 4), r"not this model: blocks.2"),
        (
            lambda s, a: a.__setitem__("precision", "fp4"),
            r"must be fp8 or int8 with a list of layers, got 'fp4'",
        ),
        (lambda s, a: s["pos_embed"].__setitem__((0, 0, 0), float("inf")), r"pos_embed must be finite"),
    ],
)
def test_bad_files(file: Path, change: Any, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        latte_fast.load(edited(file, change))


def test_other_mistakes(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config must be None"):
        latte_fast.load(file, config=refilled().config)
    with pytest.raises(CheckpointError, match="weight must be of float32, float16"):
        load_checkpoint(refilled(), file)
    with pytest.raises(ValueError, match=r"out must end in \.safetensors, got a\.pt"):
        save_8bit(refilled(), tmp_path / "a.pt", {})
    with pytest.raises(ValueError, match="must have 8-bit layers to be written as such"):
        save_8bit(refilled(), tmp_path / "a.safetensors", {})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        latte_fast.load(cut)
    with pytest.raises(SystemExit, match="quantize: out must not exist"):
        command(str(file), file)
    with pytest.raises(SystemExit, match=r"quantize: out must end in \.safetensors"):
        command(str(file), tmp_path / "a.pt")
    with pytest.raises(SystemExit, match="samples must be at least 0"):
        command(str(file), tmp_path / "b.safetensors", samples=-1)
    with pytest.raises(SystemExit, match="has 8-bit layers already"):
        command(str(file), tmp_path / "b.safetensors", samples=0, device="cpu")
