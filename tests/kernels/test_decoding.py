"""small_linear's and decode_attention's kernels against the oracle; heads whose keys several programs share."""

import pytest
import torch
from torch import Tensor

from latte_fast import ops
from latte_fast.kernels import decode_attention, tiles
from latte_fast.modules.linear_int8 import rounded_int8
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import pairwise
from tests.kernels.cases import name, randn

HALVES = (torch.bfloat16, torch.float16)
LINEAR = {
    "rows": (1, 3, 8),
    "depth": (1, 24, 64, 300),
    "cols": (1, 9, 40),
    "given": ("all", "none", "bias", "norm"),
    "gelu": (False, True),
    "int8": (False, True),
    "dtype": (torch.float32, *HALVES),
}
FEW = [
    {"rows": 3, "depth": 24, "cols": 9, "given": "all", "gelu": True, "int8": True, "dtype": torch.float32},
    {"rows": 1, "depth": 300, "cols": 40, "given": "norm", "gelu": False, "int8": True, "dtype": torch.bfloat16},
    {"rows": 8, "depth": 64, "cols": 1, "given": "none", "gelu": False, "int8": False, "dtype": torch.float16},
]


@pytest.mark.parametrize("case", [*FEW, *(pytest.param(c, marks=pytest.mark.slow) for c in pairwise(LINEAR))], ids=name)
def test_small_linear_pairs(case: dict) -> None:
    (rows, depth, cols), dtype, given = (case[n] for n in ("rows", "depth", "cols")), case["dtype"], case["given"]
    x, residual = randn(rows, depth + 3, dtype=dtype)[:, 3:], randn(rows, cols, dtype=dtype, seed=5)
    weight = randn(cols, depth + 2, dtype=dtype, seed=1)[:, 2:] / depth**0.5
    norm = [randn(depth, dtype=dtype, seed=s) for s in (2, 3)] if given in ("all", "norm") else [None, None]
    bias = randn(cols, dtype=dtype, seed=4) if given in ("all", "bias") else None
    args = (x, weight, bias, *norm, residual if given == "all" else None, case["gelu"])
    if case["int8"]:
        whole = torch.zeros(cols, depth + 2, dtype=torch.int8, device=weight.device)
        whole[:, 2:], scale = rounded_int8(weight)
        args = (x, whole[:, 2:], *args[2:], 1e-5, scale)
    compare(ops.small_linear, R.small_linear_ref, args, ("y",))


ATTENTION = {
    "B": (1, 2),
    "H": (1, 3),
    "length": (1, 40, 300),
    "K": (7, 16, 72),
    "place": ("first", "middle", "last"),
    "splits": (1, 3),
    "dtype": (torch.float32, *HALVES),
}
FEW_HEADS = [
    {"B": 1, "H": 1, "length": 300, "K": 16, "place": "last", "splits": 3, "dtype": torch.float32},
    {"B": 2, "H": 3, "length": 40, "K": 72, "place": "middle", "splits": 1, "dtype": torch.bfloat16},
    {"B": 1, "H": 3, "length": 40, "K": 7, "place": "first", "splits": 3, "dtype": torch.float16},
]
MORE = [pytest.param(c, marks=pytest.mark.slow) for c in pairwise(ATTENTION)]


@pytest.mark.parametrize("case", [*FEW_HEADS, *MORE], ids=name)
def test_decode_attention_pairs(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits beyond the keys add nothing; what lies behind the new token is not read."""
    B, H, L, K = (case[n] for n in ("B", "H", "length", "K"))
    chosen = decode_attention.config
    monkeypatch.setattr(decode_attention, "config", lambda *a: tiles.replace(chosen(*a), splits=case["splits"]))
    at = {"first": 0, "middle": L // 2, "last": L - 1}[case["place"]]
    qkv, cache = randn(B, 3, H, K, dtype=case["dtype"]), randn(2, B, L, H, K, dtype=case["dtype"]).transpose(2, 3)
    position, caches = torch.tensor([at], device=qkv.device), []

    def fast(qkv: Tensor, cache: Tensor) -> Tensor:
        caches.append(cache.clone())
        caches[-1][:, :, :, at:] = float("nan")
        return ops.decode_attention(qkv, caches[-1], position)

    compare(fast, lambda q, c: R.decode_attention_ref(q, c.clone(), position), (qkv, cache), ("out",))
    assert torch.equal(caches[-1][:, :, :, at], qkv[:, 1:].transpose(0, 1))
    assert torch.equal(caches[-1][:, :, :, :at], cache[:, :, :, :at]) and caches[-1][:, :, :, at + 1 :].isnan().all()


def test_programs_share_the_keys_of_few_heads() -> None:
    """As many a head as there are multiprocessors to spare, and none for fewer than 128 keys."""

    def splits(batch: int, length: int) -> int:
        qkv = torch.empty(batch, 3, 16, 64, device="meta")
        return decode_attention.config(qkv, torch.empty(2, batch, 16, length, 64, device="meta")).splits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "gpu_of", lambda device: tiles.Gpu("ahead", 132, 9))
        tiles.choose.cache_clear()
        assert [splits(b, n) for b, n in ((1, 1024), (1, 300), (4, 1024), (8, 1024), (32, 4096))] == [8, 2, 2, 1, 1]
    tiles.choose.cache_clear()
