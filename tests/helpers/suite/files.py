"""Folders: saved and loaded by every option."""

import json
import tempfile
from pathlib import Path

import pytest
import torch

from latte_fast.modules.linear import joined
from tests.helpers.pipelines import diffusers
from tests.helpers.suite.kinds import Kind, call, check, close, installed, need, reference


@check("`save_pretrained`, `from_pretrained`")
@torch.no_grad()
def folders(kind: Kind) -> None:
    model = kind.model()
    want = call(reference())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        assert config["_class_name"] == "LatteTransformer3DModel" and config["num_layers"] == 2
        close(call(kind.load(folder)), want)
        # without latte_fast
        close(call(diffusers.LatteTransformer3DModel.from_pretrained(folder)), want)
        loaded, info = kind.cls.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


@check("variants, shards, `.bin`")
@torch.no_grad()
def kinds_of_files(kind: Kind) -> None:
    model = kind.model()
    want = call(reference())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, variant="fp16", max_shard_size="100KB")
        names = {p.name for p in Path(folder).iterdir()}
        assert len(names) > 4 and any("fp16" in name and "index" in name for name in names)
        close(call(kind.load(folder, variant="fp16")), want)
        with pytest.raises(OSError):
            kind.load(folder)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=False)
        assert (Path(folder) / "diffusion_pytorch_model.bin").is_file()
        close(call(kind.load(folder)), want)


@check("`torch_dtype`, `to`, `from_config`, another config")
@torch.no_grad()
def dtypes(kind: Kind) -> None:
    model = kind.model()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        half = kind.load(folder, torch_dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
        close(call(half), call(reference()), 0.05)
        other = kind.load(folder, video_length=5)
        assert other.config.video_length == 5
    again = kind.finish(kind.cls.from_config(model.config).eval())
    again.load_state_dict(model.state_dict())
    close(call(again.to(torch.float64)), call(reference()))
    assert again.num_parameters() == model.num_parameters()


@check("`low_cpu_mem_usage`, `device_map` (accelerate)")
@torch.no_grad()
def placement(kind: Kind) -> None:
    installed("accelerate")
    model = kind.model()
    want = call(reference())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = kind.load(folder, low_cpu_mem_usage=True)
        close(call(loaded), want)
        if kind.name != "theirs":  # one product for q, k and v, though each was loaded by itself
            attentions = [block.attn1 for block in loaded.temporal_transformer_blocks]
            assert all(joined((attn.to_q, attn.to_k, attn.to_v)) is not None for attn in attentions)
        # some blocks are read from the disk each time that they are called
        devices = {name: "cpu" for name, _ in kind.cls(**model.config).named_children() if name != "blocks"}
        devices["scale_shift_table"] = "cpu"
        devices["temporal_transformer_blocks"] = "disk"
        offloaded = kind.load(folder, device_map=devices, offload_folder=f"{folder}/disk")
        close(call(offloaded), want)


@check("layerwise casting")
@torch.no_grad()
def layerwise_casting(kind: Kind) -> None:
    model = kind.model()
    need(model, "enable_layerwise_casting")
    want = reference()
    for each in (model, want):
        each.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.transformer_blocks[0].ff.net[2].weight.dtype == torch.float8_e4m3fn
    close(call(model), call(want))
    assert model.transformer_blocks[0].ff.net[2].weight.dtype == torch.float8_e4m3fn


@check("group offload, by blocks and by leaves (accelerate)")
@torch.no_grad()
def group_offload(kind: Kind) -> None:
    need(diffusers.LatteTransformer3DModel, "enable_group_offload")
    installed("accelerate")  # which one release needs for it, without saying so
    want, cpu = call(reference()), torch.device("cpu")
    for options in ({"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}):
        model = kind.model()
        model.enable_group_offload(onload_device=cpu, offload_device=cpu, **options)
        for _ in range(2):
            close(call(model), want)
