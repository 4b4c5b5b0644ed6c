"""Files of token transformers: the authors' .ckpt with its VQGAN and masks, safetensors of a run, and damaged ones."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast.models.checkpoint import CheckpointError
from latte_fast.models.tats.transformer_files import (
    CONDITION_STAGE,
    load_first_stage,
    load_transformer,
    read_transformer,
)
from latte_fast.reference.token_transformer import mask_of
from tests.helpers.tiny_tokens import GAP, pair, tokens
from tests.helpers.tiny_vqgan import TINY as VQGAN
from tests.helpers.tiny_vqgan import clip
from tests.helpers.tiny_vqgan import pair as vqgan_pair


def authors(path: Path, changes: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """Writes a Lightning checkpoint as theirs; returns the transformer and the VQGAN in it."""
    ours, oracle = pair(**changes)
    vqgan = vqgan_pair()[0]
    state: dict[str, Tensor] = {f"transformer.{name}": x for name, x in oracle.float().state_dict().items()}
    block, unmasked = ours.config.block_size, ours.config.n_unmasked
    for i in range(2):
        state[f"transformer.blocks.{i}.attn.mask"] = mask_of(block, unmasked).float()[None, None]
    state |= {f"first_stage_model.{name}": x for name, x in vqgan.state_dict().items()}
    state["cond_stage_model.weight"] = torch.ones(3)
    known = {"n_head": 2, "n_unmasked": unmasked, "unconditional": True} | options
    torch.save({"state_dict": state, "hyper_parameters": {"args": argparse.Namespace(**known)}}, path)
    return ours, vqgan


@pytest.mark.parametrize("changes", [{}, GAP, {"vtokens_pos": (2, 3, 4)}], ids=["causal", "gap", "table"])
def test_the_authors_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    want, vqgan = authors(tmp_path / "a.ckpt", changes)
    found = read_transformer(tmp_path / "a.ckpt")
    assert found.config == want.config and found.foreign == {"cond_stage_model": 1}
    model = load_transformer(tmp_path / "a.ckpt")
    assert torch.equal(model(tokens()), want(tokens())) and not model.training
    stage = load_first_stage(tmp_path / "a.ckpt", downsample=VQGAN["downsample"])
    assert torch.equal(stage.encode(clip()), vqgan.encode(clip()))
    with pytest.raises(CheckpointError, match="must name the downsampling"):
        load_first_stage(tmp_path / "a.ckpt")


def test_the_authors_sounds(tmp_path: Path) -> None:
    """Of a model that hears, a second VQGAN lies in the file, of one channel."""
    sounds = vqgan_pair(channels=1, seed=3)[0]
    authors(tmp_path / "a.ckpt", {})
    held = torch.load(tmp_path / "a.ckpt", weights_only=False)
    del held["state_dict"]["cond_stage_model.weight"]
    held["state_dict"] |= {CONDITION_STAGE + name: x for name, x in sounds.state_dict().items()}
    torch.save(held, tmp_path / "b.ckpt")
    stage = load_first_stage(tmp_path / "b.ckpt", part=CONDITION_STAGE, downsample=VQGAN["downsample"])
    assert stage.config == sounds.config and torch.equal(stage.encode(clip()[:, :1]), sounds.encode(clip()[:, :1]))


def test_what_a_file_lacks(tmp_path: Path) -> None:
    model = pair()[0]
    torch.save({"state_dict": model.state_dict()}, tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="must name n_head"):
        load_transformer(tmp_path / "bare.ckpt")
    assert torch.equal(load_transformer(tmp_path / "bare.ckpt", n_head=2)(tokens()), model(tokens()))
    state = dict(model.state_dict())
    del state["blocks.1.ln1.bias"]
    torch.save({"state_dict": state}, tmp_path / "short.ckpt")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ln1\.bias"):
        load_transformer(tmp_path / "short.ckpt", n_head=2)
    torch.save({"state_dict": {"odd": torch.ones(1)}}, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match=r"must hold transformer\.tok_emb\.weight"):
        load_transformer(tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match="n_embd must be a multiple of n_head = 3, got 16"):
        load_transformer(tmp_path / "bare.ckpt", n_head=3)
