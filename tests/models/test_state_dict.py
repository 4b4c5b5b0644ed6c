"""Keys, shapes and parameter counts against the published checkpoints' table."""

import pytest
import torch

from latte_fast import Latte_models, LatteIMG_models, reference
from tests.helpers.meta import on_meta

WIDTH, DEPTH = 1152, 28


def published(extras: int) -> dict[str, tuple[int, ...]]:
    """The table of the XL/2 checkpoints."""
    d = WIDTH
    table = {
        "pos_embed": (1, 256, d),
        "temp_embed": (1, 16, d),
        "x_embedder.proj.weight": (d, 4, 2, 2),
        "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, 256),
        "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d),
        "t_embedder.mlp.2.bias": (d,),
        "final_layer.linear.weight": (32, d),
        "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2 * d, d),
        "final_layer.adaLN_modulation.1.bias": (2 * d,),
    }
    for i in range(DEPTH):
        for name, rows, columns in [
            ("attn.qkv", 3 * d, d),
            ("attn.proj", d, d),
            ("mlp.fc1", 4 * d, d),
            ("mlp.fc2", d, 4 * d),
            ("adaLN_modulation.1", 6 * d, d),
        ]:
            table[f"blocks.{i}.{name}.weight"] = (rows, columns)
            table[f"blocks.{i}.{name}.bias"] = (rows,)
    if extras == 2:
        table["y_embedder.embedding_table.weight"] = (102, d)
    if extras == 78:
        table["text_embedding_projection.1.weight"] = (d, 59136)
        table["text_embedding_projection.1.bias"] = (d,)
    return table


@pytest.mark.parametrize("extras", [1, 2, 78])
@pytest.mark.parametrize("source", ["fast", "oracle"])
def test_xl2_keys_and_shapes(extras: int, source: str) -> None:
    registry = Latte_models if source == "fast" else reference.latte.Latte_models
    with on_meta():
        model = registry["Latte-XL/2"](extras=extras, num_classes=101)
    table = published(extras)
    assert len(table) == {1: 292, 2: 293, 78: 294}[extras]
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == table


@pytest.mark.parametrize(
    ("name", "trainable", "with_tables"),
    [
        ("Latte-S/2", 32_480_672, 32_585_120),
        ("Latte-B/2", 129_547_040, 129_755_936),
        ("Latte-L/2", 456_815_648, 457_094_176),
        ("Latte-XL/2", 673_681_568, 673_994_912),
        ("Latte-XL/4", 673_847_552, None),
        ("Latte-XL/8", 674_511_488, None),
    ],
)
def test_parameter_counts(name: str, trainable: int, with_tables: int | None) -> None:
    with on_meta():
        model = Latte_models[name]()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    if with_tables:
        assert sum(p.numel() for p in model.parameters()) == with_tables


def test_joint_has_the_same_keys() -> None:
    with on_meta():
        plain = Latte_models["Latte-S/2"](extras=2).state_dict()
        joint = LatteIMG_models["LatteIMG-S/2"]().state_dict()
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in joint.items()}


@pytest.mark.parametrize("extras", [1, 2, 78])
def test_loads_strictly_both_ways(extras: int) -> None:
    keywords = {"depth": 2, "hidden_size": 64, "num_heads": 2, "extras": extras, "input_size": 8}
    from latte_fast import Latte

    oracle, fast = reference.latte.Latte(**keywords), Latte(**keywords)
    fast.load_state_dict(oracle.state_dict(), strict=True)
    oracle.load_state_dict(fast.state_dict(), strict=True)


def test_position_tables_equal_the_oracles() -> None:
    fast, oracle = Latte_models["Latte-S/2"](), reference.latte.Latte_models["Latte-S/2"]()
    assert torch.equal(fast.pos_embed, oracle.pos_embed)
    assert torch.equal(fast.temp_embed, oracle.temp_embed)
    assert fast.temp_embed[0, 0].tolist() == [0.0] * 192 + [1.0] * 192
    # patch 1 is one column to the right of patch 0: only the first half of the width moves
    assert not torch.equal(fast.pos_embed[0, 0, :192], fast.pos_embed[0, 1, :192])
    assert torch.equal(fast.pos_embed[0, 0, 192:], fast.pos_embed[0, 1, 192:])
