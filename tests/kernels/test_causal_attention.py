"""causal_attention's kernels against the oracle: prefixes that end inside a block, at its end and with the sequence."""

import pytest
import torch

from latte_fast import ops
from latte_fast.kernels import causal_attention_bwd, causal_attention_fwd, rows, tiles
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import pairwise
from tests.kernels.cases import name, randn

AXES = {
    "B": (1, 2),
    "L": (1, 16, 33, 70, 100),
    "H": (1, 2),
    "K": (8, 64, 72),
    "prefix": ("none", "one", "some", "block", "all"),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
}
FEW = [
    {"B": 1, "L": 70, "H": 2, "K": 72, "prefix": "some", "dtype": torch.float32},
    {"B": 2, "L": 33, "H": 1, "K": 8, "prefix": "none", "dtype": torch.bfloat16},
    {"B": 1, "L": 33, "H": 1, "K": 64, "prefix": "all", "dtype": torch.float16},
]


@pytest.mark.parametrize("blocks", [(16, 32), (32, 16)])
@pytest.mark.parametrize("case", [*FEW, *(pytest.param(c, marks=pytest.mark.slow) for c in pairwise(AXES))], ids=name)
def test_causal_attention_pairs(case: dict, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of queries shorter and longer than those of keys."""
    shape = tiles.FlashConfig(*blocks, warps=4, stages=1)
    for module in (causal_attention_fwd, causal_attention_bwd):
        monkeypatch.setattr(module, "config", lambda *args: shape)
    L = case["L"]
    prefix = {"none": 0, "one": min(1, L), "some": min(23, L), "block": min(32, L), "all": L}[case["prefix"]]
    qkv = randn(case["B"], L, 3, case["H"], case["K"], dtype=case["dtype"]).requires_grad_()
    compare(
        lambda x: ops.causal_attention(x, prefix), lambda x: R.causal_attention_ref(x, prefix), (qkv,), ("out", "dqkv")
    )


def test_registered_and_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    # without the margins around an output, which shift it
    monkeypatch.setattr(rows, "empty", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype, device=device))
    qkv = randn(1, 20, 3, 1, 16).requires_grad_()
    torch.library.opcheck(torch.ops.latte_fast.causal_attention.default, (qkv, 5, True, "triton"))
    assert ops.causal_attention(qkv[:0], 5).shape == (0, 20, 16)
