"""causal_attention against the oracle on every backend that serves here: masks, layouts, gradients, refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import ops, use_backend
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import cell_id, pairwise
from tests.helpers.guards import poisoned_empty, require_backend

AXES = {
    "size": ((2, 9, 2, 8), (1, 2, 1, 16), (1, 70, 1, 24), (3, 33, 2, 5)),
    "prefix": ("none", "one", "some", "all"),
    "layout": ("packed", "sliced"),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
}


def packed(cell: dict[str, Any]) -> tuple[Tensor, int]:
    source = torch.Generator().manual_seed(len(cell_id(cell)))
    batch, length, heads, width = cell["size"]
    more = 1 if cell["layout"] == "sliced" else 0
    qkv = torch.randn(batch, length + more, 3, heads, width, generator=source).to(cell["dtype"])[:, more:]
    prefix = {"none": 0, "one": 1, "some": (length + 1) // 2, "all": length}[cell["prefix"]]
    return qkv.requires_grad_(), prefix


@pytest.mark.parametrize("cell", pairwise(AXES), ids=cell_id)
def test_values_and_gradients(cell: dict[str, Any]) -> None:
    args = packed(cell)
    require_backend("causal_attention", *args)
    with poisoned_empty():
        compare(ops.causal_attention, R.causal_attention_ref, args, ("out", "dqkv"))


def test_the_mask() -> None:
    """A token that changes is noticed by itself, by those after it, and by all where it is in the prefix."""
    torch.manual_seed(0)
    qkv = torch.randn(1, 7, 3, 1, 8, dtype=torch.float64)
    for backend in ("reference", "sdpa"):
        with use_backend(causal_attention=backend):
            for prefix in (0, 1, 3, 7):
                before = ops.causal_attention(qkv, prefix)
                for j in range(7):
                    other = qkv.clone()
                    other[:, j, 1:] += 1
                    changed = (ops.causal_attention(other, prefix) - before).abs().amax((0, 2)) > 1e-9
                    assert changed.tolist() == [i >= j or j < prefix for i in range(7)]


def test_compiles_and_empty() -> None:
    qkv, prefix = packed({"size": (2, 9, 2, 8), "prefix": "some", "layout": "packed", "dtype": torch.float32})
    call = torch.compile(lambda x: ops.causal_attention(x, prefix), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(qkv), ops.causal_attention(qkv, prefix))
    assert ops.causal_attention(qkv.detach()[:0]).shape == (0, 9, 16)


Q = torch.zeros(2, 5, 3, 2, 4)
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: ops.causal_attention(Q[:, :, 0]), ValueError, r"qkv must be \(B, L, 3, H, K\), got \(2, 5, 2, 4\)"),
    (lambda: ops.causal_attention(Q.int()), TypeError, "qkv must be fp32, bf16, fp16 or fp64"),
    (lambda: ops.causal_attention(Q.transpose(3, 4)), ValueError, "qkv must have a contiguous last dim"),
    (lambda: ops.causal_attention(Q, 6), ValueError, r"prefix must be in 0 \.\. 5, got 6"),
    (lambda: ops.causal_attention(Q, 1.0), TypeError, "prefix must be a number of tokens, got float"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
