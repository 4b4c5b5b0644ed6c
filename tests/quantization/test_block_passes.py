"""What a block launches in each precision and what each launch writes: the table of docs/8-bits.md."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import latte_fast
from latte_fast import Latte, ops, testing
from latte_fast.models.latte_t2v import block as block_t2v
from latte_fast.modules import linear, linear8
from latte_fast.ops import onednn
from tests.helpers.counting import require_kernels
from tests.helpers.tiny_latte import KEYWORDS

# what launches over all tokens, by the modules in which it is looked up
WATCHED: dict[Any, tuple[str, ...]] = {
    ops: tuple(name for name in ops.__all__ if name not in ("linear_gelu", "small_linear")),
    onednn: ("linear", "attention", "mlp"),
    linear: ("linear_layer",),
    linear8: ("product",),
}
# launches of each layer, in their order
LAYERS = {
    "norm before attention": {"bf16": 1, "int8": 1, "fp8": 1},
    "qkv, attention": {"bf16": 1, "int8": 1, "fp8": 2},
    "proj": {"bf16": 1, "int8": 1, "fp8": 1},
    "norm before the MLP": {"bf16": 1, "int8": 1, "fp8": 1},
    "fc1, GELU, fc2": {"bf16": 1, "int8": 1, "fp8": 3},
}


def launches(precision: str, smooth: bool, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Returns the second block's launches, and what each writes in units of the tokens in bf16."""
    torch.manual_seed(0)
    model = testing.refill(Latte(**KEYWORDS | {"depth": 4})).eval().bfloat16()
    x, t = torch.randn(1, 4, 4, 8, 8).bfloat16(), torch.tensor([3])
    tokens = 4 * 16 * KEYWORDS["hidden_size"] * 2
    if precision != "bf16":
        calibrate = (lambda model: model(x, t)) if smooth else None
        latte_fast.quantize(model, precision, calibrate=calibrate, smooth=smooth)
    found: list[tuple[str, float]] = []
    inside: list[str] = []

    def watched(name: str, op: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            inside.append(name)
            out = op(*args, **kwargs)
            inside.pop()
            if not inside:  # what an op calls is a part of it
                size = sum(r.nbytes for r in tree_leaves(out) if isinstance(r, Tensor))
                found.append((name, size / tokens))
            return out

        return run

    with monkeypatch.context() as patch:
        for module, names in WATCHED.items():
            for name in names:
                patch.setattr(module, name, watched(name, getattr(module, name)))
        patch.setattr(block_t2v, "product", linear8.product)
        model(x, t)
    norms = [i for i, (name, _) in enumerate(found) if "norm_modulate" in name]
    return found[norms[2] : norms[4]]


@torch.no_grad()
def test_a_blocks_launches_are_those_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 on a CPU writes less than bf16 in as many launches, and smoothing adds none."""
    require_kernels(64, 2)
    monkeypatch.setattr(onednn, "served", lambda: onednn.Served(None, True))
    cells: dict[str, list[str]] = {layer: [] for layer in LAYERS}
    totals = []
    for precision in ("bf16", "int8", "fp8"):
        block = launches(precision, False, monkeypatch)
        if precision != "bf16":
            assert launches(precision, True, monkeypatch) == block
        totals.append(f"{len(block)}, {sum(size for _, size in block):.1f} u")
        for layer, counts in LAYERS.items():
            mine, block = block[: counts[precision]], block[counts[precision] :]
            cells[layer].append(f"{len(mine)}, {sum(size for _, size in mine):.1f} u")
        assert not block, block
    table = [f"| {layer} | {' | '.join(mine)} |" for layer, mine in cells.items()]
    table.append(f"| a block | {' | '.join(totals)} |")
    text = (Path(__file__).parents[2] / "docs" / "8-bits.md").read_text()
    missing = [row for row in table if row not in text]
    assert not missing, "\n".join(table)
