"""The cost model against the paper's tables and against what the models really run."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latte_fast import Latte, Latte_models, cost, reference, use_backend
from latte_fast.config import PRESETS, TABLE_3_PRESETS, LatteConfig
from latte_fast.cost_model import rows
from tests.helpers.meta import on_meta as built_on_meta

ALL = PRESETS | TABLE_3_PRESETS
VARIANTS = {f"Latte-B/2 variant {v}": PRESETS["Latte-B/2"] | {"variant": v} for v in (2, 3, 4)}
CELLS = {
    "tokens": PRESETS["Latte-S/2"] | {"conditioning": "tokens", "extras": 2, "num_classes": 101},
    "compression": PRESETS["Latte-S/2"] | {"patch_frames": 2},
    "tokens compression rope 4": PRESETS["Latte-S/2"]
    | {"conditioning": "tokens", "patch_frames": 4, "time_pos": "rope", "variant": 4},
    "text": PRESETS["Latte-S/2"] | {"extras": 78},
}
COUNTED = ALL | VARIANTS | CELLS


def truncated(value: float) -> float:
    """The paper's tables cut after two decimals."""
    return int(value * 100) / 100


@pytest.mark.parametrize(
    ("model", "parameters", "gmacs"),
    [
        (PRESETS["Latte-XL/2"], 673.68, 5572.69),
        (PRESETS["Latte-XL/2"] | {"variant": 2}, 673.68, 5572.69),
        (TABLE_3_PRESETS["Latte-XL/2-table3-v3"], 676.33, 6153.15),
        (TABLE_3_PRESETS["Latte-XL/4-table3-v4"], 676.44, 1545.15),
    ],
    ids=["1", "2", "3", "4"],
)
def test_table_3(model: dict, parameters: float, gmacs: float) -> None:
    result = cost(LatteConfig(**model), batch=3)
    assert truncated(result.parameters / 1e6) == parameters
    assert truncated(result.macs_paper / 1e9) == gmacs


@pytest.mark.parametrize(
    ("name", "parameters"), [("S", 32_480_672), ("B", 129_547_040), ("L", 456_815_648), ("XL", 673_681_568)]
)
def test_table_4(name: str, parameters: int) -> None:
    assert cost(f"Latte-{name}/2").parameters == parameters


def on_meta(cls: Any, keywords: dict) -> torch.nn.Module:
    with built_on_meta():
        return cls(**keywords).to("meta").eval()


def call(model: Any, batch: int = 1) -> torch.Tensor:
    c = model.config
    x = torch.empty(batch, c.num_frames, c.in_channels, c.input_size, c.input_size, device="meta")
    kwargs: dict[str, torch.Tensor] = {}
    if c.extras == 2:
        kwargs["y"] = torch.zeros(batch, dtype=torch.int64, device="meta")
    if c.extras == 78:
        kwargs["text_embedding"] = torch.empty(batch, 77, 768, device="meta")
    return model(x, torch.zeros(batch, device="meta"), **kwargs)


# sides of 4 and 8 count as 2 does: a whole model on the meta device takes half a minute
NAMES = [pytest.param(n, marks=pytest.mark.slow if n in ("Latte-XL/4", "Latte-XL/8") else ()) for n in COUNTED]


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_what_the_models_run(name: str) -> None:
    keywords = COUNTED[name]
    result = cost(LatteConfig(**keywords))
    oracle, fast = on_meta(reference.latte.Latte, keywords), on_meta(Latte_models["Latte-S/2"].func, keywords)
    for model, macs in ((oracle, result.macs_upstream), (fast, result.macs_needed)):
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == result.parameters
        assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == result.frozen
        with torch.no_grad(), use_backend("reference"), FlopCounterMode(display=False) as counter:
            call(model)
        assert counter.get_total_flops() == 2 * macs


def test_paper_convention_is_what_the_modules_see() -> None:
    """Rows through every Linear and Conv, and two a value through every norm, of models that run."""
    for name in ("Latte-XL/2", *TABLE_3_PRESETS):
        model = on_meta(reference.latte.Latte, ALL[name])
        macs = 0

        def count(module: Any, args: tuple, out: torch.Tensor) -> None:
            nonlocal macs
            macs += out.numel() * module.weight[0].numel()

        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.register_forward_hook(count)
        with torch.no_grad():
            call(model, batch=3)
        c = model.config
        tokens = 3 * c.token_frames * c.grid**2
        norms = 2 * c.hidden_size * tokens * (c.depth * (3 if c.variant == 3 else 2) + 1)
        assert macs + norms == cost(name, batch=3).macs_paper


def test_known_landmarks() -> None:
    xl = cost("Latte-XL/2")
    half = cost(LatteConfig(**PRESETS["Latte-XL/2"] | {"depth": 14}))
    # 1892.7 and 1862.6 are the blocks alone; patches, embedders and head add 0.27 and 0.23
    assert round(2 * (xl.macs_upstream - half.macs_upstream) / 1e9, 1) == 1892.7
    assert round(2 * (xl.macs_needed - half.macs_needed) / 1e9, 1) == 1862.6
    assert round(xl.macs_upstream / 1e9, 2) == 1892.96
    assert round(xl.macs_needed / 1e9, 2) == 1862.83
    per_block = {k: round(v / 28 / 1e6) for k, v in xl.kept_bytes.items()}
    assert per_block["elementwise"] == 104 and per_block["mlp"] == 66
    assert round(xl.moved_bytes / 28 / 1e6) == 113
    assert 5.3e-3 < xl.floor_seconds(790e12, 4.3e12) < 5.6e-3
    assert cost("Latte-XL/2", size=512).macs_needed > 4 * xl.macs_needed
    assert cost("Latte-XL/2", size=(256, 512)).moved_bytes == 2 * xl.moved_bytes


@pytest.mark.parametrize("name", ["Latte-S/2", "Latte-B/2 variant 3", "tokens", "Latte-XL/4-table3-v4"])
def test_8_bit_layers_are_those_that_quantize_takes(name: str) -> None:
    from latte_fast.quantization.convert import DEFAULT, owners, submodule

    model, kinds = on_meta(Latte, COUNTED[name]), DEFAULT["products"]
    taken = [submodule(o, path) for o, _ in owners(model) for path, kind in o.products.items() if kind in kinds]
    result, config = cost(LatteConfig(**COUNTED[name])), LatteConfig(**COUNTED[name])
    weights = sum(layer.weight.numel() for layer in taken)
    tokens = config.token_frames * (config.grid**2 + config.extra_tokens)
    assert result.macs_8bit == weights * tokens
    scales = sum(layer.out_features for layer in taken)
    assert result.weight_bytes_8bit == result.weight_bytes - weights + 4 * scales
    assert result.moved_bytes_8bit * 12 == result.moved_bytes * 17
    slow, fast = (result.floor_seconds_8bit(1e14, rate, 1e12) for rate in (1e14, 2e14))
    assert slow - fast == pytest.approx(result.macs_8bit / 1e14)
    moved = (result.moved_bytes_8bit - result.moved_bytes) / 1e12
    assert slow == pytest.approx(result.floor_seconds(1e14, 1e12) + moved)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("Latte-Q/2",), "config must be one of"),
        (("Latte-S/2", 0), "batch must be a positive"),
        (("Latte-S/2", 1, 0), "frames must be a positive"),
        (("Latte-S/2", 1, 16, 250), "size must be a positive multiple of 16, got 250"),
    ],
    ids=str,
)
def test_bad_input(args: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cost(*args)


def test_figures_in_the_docs() -> None:
    """The table of docs/design-space.md is what `latte-fast cost` prints."""
    from pathlib import Path

    text = (Path(__file__).parents[1] / "docs/design-space.md").read_text()
    for name in ("Latte-XL/2", *TABLE_3_PRESETS):
        one, three = dict(rows(name, 1, cost(name))), dict(rows(name, 3, cost(name, batch=3)))
        line = next(row for row in text.splitlines() if row.startswith(f"| `{name}`"))
        printed = [three["as the paper counts"], one["multiply-adds needed"], one["as upstream runs them"]]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == [one["parameters"].split(" (")[0], *printed]
