"""Initialisation from a DiT: what is taken, what is fitted, what is left."""

from pathlib import Path

import pytest
import torch

from latte_fast import Latte
from latte_fast.models.checkpoint import CheckpointError
from latte_fast.models.latte.from_dit import init_from_dit
from tests.helpers.tiny_latte import KEYWORDS, equal, fresh, refilled


@pytest.fixture
def model() -> Latte:
    return refilled()


def test_dit_initialisation(model: Latte, tmp_path: Path) -> None:
    dit = {k: v for k, v in model.state_dict().items() if k != "temp_embed"}
    dit["y_embedder.embedding_table.weight"] = torch.randn(1001, 64)
    torch.save(dit, tmp_path / "DiT.pt")
    target = fresh(extras=2, num_classes=5)
    temp = target.temp_embed.clone()
    report = init_from_dit(target, tmp_path / "DiT.pt")
    assert target.y_embedder.embedding_table.weight.abs().max() == 0
    assert torch.equal(target.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    assert torch.equal(target.temp_embed, temp)
    assert "label table" in report.left["y_embedder.embedding_table.weight"]
    assert "kept" in report.left["temp_embed"]
    assert len(report.taken) == len(dit) - 1
    assert "tensors taken" in str(report)


def test_dit_positions_are_resized(model: Latte, tmp_path: Path) -> None:
    dit = {k: v for k, v in model.state_dict().items() if k != "temp_embed"} | {"pos_embed": torch.randn(1, 64, 64)}
    torch.save(dit, tmp_path / "DiT.pt")
    target = fresh()
    report = init_from_dit(target, tmp_path / "DiT.pt")
    assert "resized from (1, 64, 64) to (1, 16, 64)" in report.fitted["pos_embed"]


@pytest.mark.parametrize("wrong", ["depth", "width"])
def test_dit_of_another_size_is_refused(wrong: str, tmp_path: Path) -> None:
    other = {"depth": 4} if wrong == "width" else {"depth": 2}
    source = Latte(**KEYWORDS | other | ({"hidden_size": 128} if wrong == "width" else {}))
    torch.save({k: v for k, v in source.state_dict().items() if k != "temp_embed"}, tmp_path / "DiT.pt")
    target, before = fresh(depth=4), fresh(depth=4)
    with pytest.raises(CheckpointError, match=f"not a DiT of this {'depth' if wrong == 'depth' else 'size'}"):
        init_from_dit(target, tmp_path / "DiT.pt")
    assert equal(target, before)


def save_dit(model: Latte, path: Path) -> dict[str, torch.Tensor]:
    state = {k: v for k, v in model.state_dict().items() if k != "temp_embed"}
    torch.save(state, path)
    return state


@pytest.mark.parametrize(
    "cell",
    [
        {"variant": 2},
        {"variant": 3},
        {"variant": 4},
        {"variant": 4, "full_attention": True},
        {"patch_frames": 2},
        {"conditioning": "tokens"},
        {"time_pos": "rope"},
    ],
    ids=str,
)
def test_every_variant_takes_what_dit_has(cell: dict, model: Latte, tmp_path: Path) -> None:
    state = save_dit(model, tmp_path / "DiT.pt")
    target, before = fresh(**cell), fresh(**cell).state_dict()
    report = init_from_dit(target, tmp_path / "DiT.pt")
    after = target.state_dict()
    assert torch.equal(after["blocks.1.mlp.fc1.weight"], state["blocks.1.mlp.fc1.weight"])
    for key in report.left:
        if key in after:
            assert torch.equal(after[key], before[key]), key
    assert set(report.taken) | set(report.left) >= set(after)
    x = torch.randn(1, 4, 4, 8, 8)
    assert target(x, torch.tensor([3])).isfinite().all()


def test_split_heads_add_up_to_dits_attention(model: Latte, tmp_path: Path) -> None:
    """On one frame attention over time passes v through, so only the space half depends on q and k."""
    state = save_dit(model, tmp_path / "DiT.pt")
    target = fresh(variant=4)
    init_from_dit(target, tmp_path / "DiT.pt")
    after = target.state_dict()
    heads = state["blocks.0.attn.qkv.weight"].view(3, 2, 32, 64)
    assert torch.equal(after["blocks.0.attn.qkv.weight"], heads[:, 0].flatten(0, 1))
    assert torch.equal(after["blocks.0.attn_time.qkv.weight"], heads[:, 1].flatten(0, 1))
    joined = torch.cat([after["blocks.0.attn.proj.weight"], after["blocks.0.attn_time.proj.weight"]], dim=1)
    assert torch.equal(joined, state["blocks.0.attn.proj.weight"])
    bias = after["blocks.0.attn.proj.bias"] + after["blocks.0.attn_time.proj.bias"]
    assert torch.equal(bias, state["blocks.0.attn.proj.bias"]) and bias.any()


def test_a_still_patch_embeds_as_in_dit(model: Latte, tmp_path: Path) -> None:
    save_dit(model, tmp_path / "DiT.pt")
    target = fresh(patch_frames=2)
    init_from_dit(target, tmp_path / "DiT.pt")
    frame = torch.randn(1, 1, 4, 8, 8)
    assert torch.allclose(target.x_embedder(frame.expand(1, 2, 4, 8, 8)), model.x_embedder(frame), atol=1e-6)
