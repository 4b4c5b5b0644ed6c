"""Folders in and out: both projects' names, shards, .bin, stray buffers, PixArt-alpha; and every broken folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from latte_fast import LatteT2V
from latte_fast.models.checkpoint import CheckpointError
from latte_fast.models.latte_t2v.diffusers_folder import STEM, read_weights, start_from_pixart
from tests.helpers.t2v import SMALL, inputs


@pytest.fixture
def model() -> LatteT2V:
    torch.manual_seed(0)
    return LatteT2V(**SMALL).eval()


def write_config(folder: Path, name: str = "LatteTransformer3DModel", **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.24"} | SMALL | more))


def same(a: LatteT2V, b: LatteT2V) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_save_and_load(model: LatteT2V, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = LatteT2V.from_pretrained(tmp_path)
    assert same(model, again) and again.config == model.config and not again.training
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", f"{STEM}.safetensors"]
    assert LatteT2V.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert LatteT2V.from_pretrained(tmp_path, torch_dtype=torch.float16, video_length=9).config.video_length == 9
    x, t, text, _ = inputs(3, 8, 8)
    out = again(x, t, text).sample
    out.square().mean().backward()
    assert torch.equal(out, model(x, t, text).sample)
    assert all(p.grad is not None for p in again.parameters())


def test_upstream_bin_with_its_extra_fields_and_stray_buffer(model: LatteT2V, tmp_path: Path) -> None:
    extra = {"norm_num_groups": 32, "num_vector_embeds": None, "attention_type": "default", "upcast_attention": False}
    write_config(tmp_path / "transformer", "LatteT2V", **extra)
    state = model.state_dict() | {"caption_projection.y_embedding": torch.zeros(120, 40)}
    torch.save(state, tmp_path / "transformer" / f"{STEM}.bin")
    assert same(model, LatteT2V.from_pretrained(tmp_path, subfolder="transformer"))
    # a pipeline's folder is understood by itself
    assert same(model, LatteT2V.from_pretrained(tmp_path))


def write_shards(model: LatteT2V, folder: Path) -> list[Path]:
    write_config(folder)
    items = list(model.state_dict().items())
    places = {}
    files = []
    for i, part in enumerate((items[: len(items) // 2], items[len(items) // 2 :])):
        files.append(folder / f"{STEM}-0000{i + 1}-of-00002.safetensors")
        save_file({k: v.contiguous() for k, v in part}, files[-1])
        places |= {k: files[-1].name for k, _ in part}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return files


def test_shards(model: LatteT2V, tmp_path: Path) -> None:
    files = write_shards(model, tmp_path)
    assert same(model, LatteT2V.from_pretrained(tmp_path))
    files[1].unlink()
    with pytest.raises(CheckpointError, match=f"1 of 2 shards are missing, the first {files[1].name}"):
        LatteT2V.from_pretrained(tmp_path)
    save_file({}, files[1])
    with pytest.raises(CheckpointError, match="hold tensors"):
        LatteT2V.from_pretrained(tmp_path)


def test_shards_and_their_index_must_agree(model: LatteT2V, tmp_path: Path) -> None:
    """A start from PixArt would otherwise leave what is in no shard as it was, and say nothing."""
    write_shards(model, tmp_path)
    index = tmp_path / f"{STEM}.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"pos_embed.lost": next(iter(places.values()))}}))
    with pytest.raises(CheckpointError, match=r"1 tensors are in no shard, the first pos_embed\.lost"):
        read_weights(tmp_path)
    for content in ("{", "{}", "[]"):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="must be JSON with a weight_map"):
            read_weights(tmp_path)


def test_variant_and_format_of_several(model: LatteT2V, tmp_path: Path) -> None:
    """The names diffusers gives them; without a variant the plain file, and no code is unpickled where it can't be."""
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    write_config(tmp_path)
    save_file({k: v.half() for k, v in state.items()}, tmp_path / f"{STEM}.fp16.safetensors")
    with pytest.raises(CheckpointError, match=f"must hold {STEM}.safetensors or .bin"):
        LatteT2V.from_pretrained(tmp_path)
    half = LatteT2V.from_pretrained(tmp_path, variant="fp16")
    assert half.dtype == torch.float16 and torch.equal(half.proj_out.weight, model.proj_out.weight.half())
    save_file(state, tmp_path / f"{STEM}.safetensors")
    torch.save({k: v + 1 for k, v in state.items()}, tmp_path / f"{STEM}.bin")
    assert same(model, LatteT2V.from_pretrained(tmp_path))
    save_file({k: v + 1 for k, v in state.items()}, tmp_path / "shard.safetensors")
    weight_map = {"weight_map": dict.fromkeys(state, "shard.safetensors")}
    (tmp_path / f"{STEM}.safetensors.index.bf16.json").write_text(json.dumps(weight_map))
    assert torch.equal(read_weights(tmp_path, "bf16")["proj_out.weight"], state["proj_out.weight"] + 1)


def no_config(folder: Path, model: LatteT2V) -> None:
    folder.mkdir()


def other_class(folder: Path, model: LatteT2V) -> None:
    write_config(folder, "SD3Transformer2DModel")


def no_weights(folder: Path, model: LatteT2V) -> None:
    write_config(folder)


def wrong_shape(folder: Path, model: LatteT2V) -> None:
    write_config(folder)
    save_file(model.state_dict() | {"proj_out.weight": torch.zeros(4, 72)}, folder / f"{STEM}.safetensors")


def broken_json(folder: Path, model: LatteT2V) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name"')


def pickled_code(folder: Path, model: LatteT2V) -> None:
    write_config(folder)
    torch.save({"a": Path}, folder / f"{STEM}.bin")


def truncated(folder: Path, model: LatteT2V) -> None:
    model.save_pretrained(folder)
    file = folder / f"{STEM}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BROKEN: dict[Callable, str] = {
    no_config: "must hold config.json, found nothing",
    other_class: "_class_name must be LatteTransformer3DModel or LatteT2V, got 'SD3Transformer2DModel'",
    no_weights: f"must hold {STEM}.safetensors or .bin, or an index of shards, found config.json",
    wrong_shape: r"proj_out.weight must have shape \(32, 72\), found \(4, 72\)",
    broken_json: "not JSON",
    pickled_code: "was not unpickled",
    truncated: "truncated or not a checkpoint",
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda f: f.__name__)
def test_broken_folders_are_named(spoil: Callable, model: LatteT2V, tmp_path: Path) -> None:
    spoil(tmp_path / "x", model)
    with pytest.raises(CheckpointError, match=BROKEN[spoil]):
        LatteT2V.from_pretrained(tmp_path / "x")


def test_a_name_on_the_hub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder; models are read from local folders only"):
        LatteT2V.from_pretrained("maxin-cn/Latte-1")
    write_config(tmp_path)
    with pytest.raises(CheckpointError, match="transformer: no such folder"):
        LatteT2V.from_pretrained(tmp_path, subfolder="transformer")


def test_start_from_pixart(model: LatteT2V, tmp_path: Path) -> None:
    donor = LatteT2V(**SMALL)
    state = {k: v for k, v in donor.state_dict().items() if not k.startswith("temporal")}
    write_config(tmp_path / "transformer", "PixArtTransformer2DModel")
    save_file(state | {"pos_embed.extra": torch.zeros(3)}, tmp_path / "transformer" / f"{STEM}.safetensors")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = start_from_pixart(model, tmp_path)
    after = model.state_dict()
    assert set(report.loaded) == set(state) and report.unused == ["pos_embed.extra"]
    assert all(k.startswith("temporal_transformer_blocks") for k in report.fresh)
    assert all(torch.equal(after[k], state[k]) for k in report.loaded)
    assert all(torch.equal(after[k], before[k]) for k in report.fresh)
    assert "left as they were" in str(report) and "temporal_transformer_blocks" in str(report)
    assert start_from_pixart(model, tmp_path, subfolder="transformer").loaded == report.loaded
    with pytest.raises(TypeError, match="subfodler"):
        start_from_pixart(model, tmp_path, subfodler="transformer")  # type: ignore[call-arg]


def test_start_from_a_wrong_pixart_changes_nothing(model: LatteT2V, tmp_path: Path) -> None:
    write_config(tmp_path, "PixArtTransformer2DModel")
    state = dict(model.state_dict()) | {"proj_out.bias": torch.zeros(7)}
    save_file(state, tmp_path / f"{STEM}.safetensors")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"proj_out.bias must have shape \(32,\), found \(7,\)"):
        start_from_pixart(model, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    save_file({"other": torch.zeros(1)}, tmp_path / f"{STEM}.safetensors")
    with pytest.raises(CheckpointError, match="holds no transformer_blocks"):
        start_from_pixart(model, tmp_path)
