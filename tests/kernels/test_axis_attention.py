"""axis_attention's kernels against the oracle: both axes, packed and apart, rotary, masks, layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latte_fast import ops
from latte_fast.kernels import axis_attention as launchers
from latte_fast.ops.axis_attention import axis_attention_of_linear
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import pairwise
from tests.kernels.cases import name, randn, rope_tables

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TIME = {"K": (8, 64, 72, 80, 128), "F": (1, 2, 15, 16, 17, 33, 64, 100), "N": (1, 3), "H": (1, 2), "dtype": DTYPES}
TIME |= {"packed": (False, True), "rope": (False, True)}
SPACE = {"K": (8, 64, 72, 80, 128), "N": (1, 7, 16, 32, 100), "keys": (1, 5, 33, 77), "F": (1, 2), "H": (1, 2)}
SPACE |= {"dtype": DTYPES, "mask": (False, True)}


def check_time(K: int, F: int, N: int, H: int, dtype: torch.dtype, packed: bool, rope: bool) -> None:
    tables = rope_tables(F, K) if rope else None
    qkv = randn(2, F, N, 3, H, K, dtype=dtype).requires_grad_()
    if packed:
        compare(ops.axis_attention_qkv, R.axis_attention_qkv_ref, (qkv, "time", tables), ("out", "dqkv"))
        return
    q, k, v = (x.requires_grad_() for x in qkv.detach().unbind(3))
    compare(ops.axis_attention, R.axis_attention_ref, (q, k, v, "time", tables), ("out", "dq", "dk", "dv"))


def check_space(K: int, N: int, keys: int, F: int, H: int, dtype: torch.dtype, mask: bool) -> None:
    q = randn(2, F, N, H, K, dtype=dtype).requires_grad_()
    # heads outermost in memory
    k = randn(2, H, F, keys, K, dtype=dtype, seed=1).permute(0, 2, 3, 1, 4).requires_grad_()
    v = randn(2, F, keys, H, K, dtype=dtype, seed=2).requires_grad_()
    key_mask = None
    if mask:
        key_mask = randn(2, keys, seed=3) > 0
        key_mask[0], key_mask[1, 0] = False, True
    args = (q, k, v, "space", None, 0.3, key_mask)
    compare(ops.axis_attention, R.axis_attention_ref, args, ("out", "dq", "dk", "dv"))


@pytest.mark.parametrize("case", pairwise(TIME), ids=name)
def test_time_attention_pairs(case: dict) -> None:
    check_time(**case)


@pytest.mark.parametrize("case", pairwise(SPACE), ids=name)
def test_space_attention_pairs(case: dict) -> None:
    check_space(**case)


@pytest.mark.slow
@pytest.mark.parametrize("rope", TIME["rope"])
@pytest.mark.parametrize("packed", TIME["packed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", (1, 7))
@pytest.mark.parametrize("F", TIME["F"])
@pytest.mark.parametrize("K", TIME["K"])
def test_time_attention_product(K: int, F: int, N: int, dtype: torch.dtype, packed: bool, rope: bool) -> None:
    check_time(K, F, N, 2, dtype, packed, rope)


@pytest.mark.slow
@pytest.mark.parametrize("mask", SPACE["mask"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", SPACE["keys"])
@pytest.mark.parametrize("N", (1, 7, 256))
@pytest.mark.parametrize("K", SPACE["K"])
def test_space_attention_product(K: int, N: int, keys: int, dtype: torch.dtype, mask: bool) -> None:
    # the more heads the fewer queries: of a few values torch's own largest error is luck, and so is twice of it
    check_space(K, N, keys, 1, max(2, 32 // N), dtype, mask)


@pytest.mark.parametrize("K", [64, 72])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_space_attention_256(K: int, dtype: torch.dtype) -> None:
    qkv = randn(1, 1, 256, 3, 1, K, dtype=dtype).requires_grad_()
    compare(ops.axis_attention_qkv, R.axis_attention_qkv_ref, (qkv, "space"), ("out", "dqkv"))


@pytest.mark.parametrize(
    ("axis", "F", "N", "rope", "dtype"),
    [
        ("time", 5, 3, True, torch.float32),
        ("time", 16, 2, False, torch.bfloat16),
        ("time", 33, 1, True, torch.float32),  # rotated back after the kernels, and summed after that
        ("space", 1, 40, False, torch.float32),
        ("space", 1, 40, False, torch.bfloat16),
    ],
)
def test_bias_gradient(axis: str, F: int, N: int, rope: bool, dtype: torch.dtype) -> None:
    """The sums over all tokens from attention's backward; 72 wide, so that heads have two pieces."""
    tables = rope_tables(F, 72) if rope else None
    qkv = randn(2, F, N, 3, 2, 72, dtype=dtype).requires_grad_()
    bias = randn(3 * 2 * 72, dtype=dtype, seed=1).requires_grad_()

    def layer(qkv: Tensor, bias: Tensor) -> Tensor:
        with_bias = qkv + bias.detach().view(3, 2, 72)
        return axis_attention_of_linear("triton", with_bias, bias, axis, tables)

    def oracle(qkv: Tensor, bias: Tensor) -> Tensor:
        rope = tables and tuple(t.to(torch.promote_types(qkv.dtype, torch.float32)) for t in tables)
        return R.axis_attention_qkv_ref(qkv + bias.view(3, 2, 72), axis, rope)

    compare(layer, oracle, (qkv, bias), ("out", "dqkv", "dbias"))


def test_scores_scaled_by_zero() -> None:
    q, k, v = (randn(2, 1, 40, 2, 8, seed=s).requires_grad_() for s in range(3))
    mask = torch.arange(40, device=q.device).expand(2, 40) < 23
    args = (q, k, v, "space", None, 0.0, mask)
    compare(ops.axis_attention, R.axis_attention_ref, args, ("out", "dq", "dk", "dv"))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 3), st.integers(1, 2)),
    K=st.sampled_from((8, 24, 40)),
    order=st.permutations(range(4)),
    axis=st.sampled_from(("space", "time")),
    step=st.integers(1, 2),
)
def test_attention_any_strides(sizes: tuple, K: int, order: list[int], axis: str, step: int) -> None:
    def stored(seed: int) -> Tensor:
        # the four leading dims stored in any order, every step-th index of each
        x = randn(*(step * sizes[d] for d in order), K, seed=seed)[(slice(None, None, step),) * 4]
        return x.permute([order.index(d) for d in range(4)] + [4]).requires_grad_()

    # bit for bit what the same values give when contiguous; how right they are is the other tests' matter, since on so
    # few values torch's own error is luck
    strided = [stored(seed) for seed in range(3)]
    results = []
    for args in (strided, [x.detach().contiguous().requires_grad_() for x in strided]):
        out = ops.axis_attention(*args, axis)
        results.append([out, *torch.autograd.grad(out, args, randn(*out.shape, seed=3))])
    for got, same in zip(*results, strict=True):
        assert not got.isnan().any()
        assert torch.equal(got, same)


@pytest.mark.parametrize("axis", ["space", "time"])
@pytest.mark.parametrize("length", [5, 40])
def test_backward_writes_only_its_gradients(axis: str, length: int) -> None:
    """dq, dk, dv as slices of a larger poisoned tensor, whose rest stays as it was."""
    F, N = (2, length) if axis == "space" else (length, 2)
    q, k, v, dout = (randn(1, F, N, 2, 24, seed=s) for s in range(4))
    out, lse = launchers.axis_attention_fwd(q, k, v, axis, None, 0.2, None, True)
    around = torch.full((3, F + 2, N + 2, 4, 40), -77.0, device=q.device)
    grads = [around[i : i + 1, 1:-1, 1:-1, 1:-1, 8:32] for i in range(3)]
    for g in grads:
        g.fill_(torch.nan)
    launchers.axis_attention_bwd(dout.flatten(-2), q, k, v, out, lse, axis, None, 0.2, None, *grads)
    assert not around.isnan().any()
    assert int((around == -77).sum()) == around.numel() - 3 * q.numel()


def test_empty_batch() -> None:
    qkv = randn(1, 3, 4, 3, 2, 8)[:0].requires_grad_()
    out = ops.axis_attention_qkv(qkv, "space")
    out.sum().backward()
    assert out.shape == (0, 3, 4, 16) and qkv.grad.shape == qkv.shape
