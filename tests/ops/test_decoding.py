"""small_linear and decode_attention against the oracle: values, layouts, one reading of the weights, refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import ops, use_backend
from latte_fast.backends import BackendUnavailable, why_not
from latte_fast.modules.linear_int8 import rounded_int8
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import cell_id, pairwise
from tests.helpers.counting import Count
from tests.helpers.guards import poisoned_empty, require_backend

HALVES = (torch.bfloat16, torch.float16)
LINEAR = {
    "rows": (1, 2, 3, 5, 8),
    "sizes": ((1, 1), (16, 40), (33, 7), (300, 65), (64, 33)),
    "bias": (True, False),
    "norm": (True, False),
    "residual": (True, False),
    "gelu": (True, False),
    "layout": ("plain", "sliced"),
    "dtype": (torch.float32, *HALVES, torch.float64),
    "weight": ("of x's dtype", "int8"),
}


def linear_args(cell: dict[str, Any]) -> tuple[Any, ...]:
    source = torch.Generator().manual_seed(len(cell_id(cell)))
    draw = lambda *shape: torch.randn(shape, generator=source).to(cell["dtype"])  # noqa: E731
    depth, cols = cell["sizes"]
    more = 3 if cell["layout"] == "sliced" else 0
    x, weight = draw(cell["rows"], depth + more)[:, more:], (draw(cols, depth + more) / depth**0.5)[:, more:]
    norm = (1 + 0.1 * draw(depth), draw(depth)) if cell["norm"] else (None, None)
    residual = draw(cell["rows"], cols + more)[:, more:] if cell["residual"] else None
    others = (draw(cols) if cell["bias"] else None, *norm, residual, cell["gelu"])
    if cell.get("weight") != "int8":
        return x, weight, *others
    whole = torch.zeros(cols, depth + more, dtype=torch.int8)
    whole[:, more:], scale = rounded_int8(weight)
    return x, whole[:, more:], *others, 1e-5, scale


@pytest.mark.parametrize("cell", pairwise(LINEAR), ids=cell_id)
def test_small_linear(cell: dict[str, Any]) -> None:
    args = linear_args(cell)
    require_backend("small_linear", *args)
    with poisoned_empty():
        compare(ops.small_linear, R.small_linear_ref, args, ("y",))


def test_int8_weights_are_multiplied_as_integers() -> None:
    """Exactly, with the largest of both signs; a row's sum is scaled once, at its end."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (40, 331), generator=source, dtype=torch.int8)
    weight[0], weight[1] = 127, -128
    x = torch.randint(-300, 300, (3, 331), generator=source)
    scale = torch.rand(40, generator=source) + 0.5
    require_backend("small_linear", x.float(), weight, *(None,) * 4, False, 1e-5, scale)
    with poisoned_empty():
        got = ops.small_linear(x.float(), weight, weight_scale=scale)
    assert torch.equal(got, (x @ weight.long().t()).float() * scale)


CELL = {"rows": 2, "sizes": (24, 40), "bias": True, "norm": True, "residual": True, "gelu": True, "layout": "plain"}


def test_small_linear_eps_and_threads() -> None:
    args = linear_args(CELL | {"sizes": (300, 200), "dtype": torch.float32})
    want = R.small_linear_ref(*(a.double() if isinstance(a, Tensor) else a for a in args), 0.5)
    got = ops.small_linear(*args, 0.5)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ops.small_linear(*args), got)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(ops.small_linear(*args, 0.5), got)
    finally:
        torch.set_num_threads(before)


def test_rows_do_not_see_each_other() -> None:
    args = linear_args(CELL | {"rows": 8, "dtype": torch.float32})
    require_backend("small_linear", *args)
    whole = ops.small_linear(*args)
    for i in range(8):
        alone = [a[i : i + 1] if isinstance(a, Tensor) and len(a) == 8 else a for a in args]
        assert torch.equal(ops.small_linear(*alone)[0], whole[i])


def test_more_rows_and_gradients_are_the_oracles() -> None:
    args = linear_args(CELL | {"rows": 9, "dtype": torch.float32})
    assert "serve up to 8 rows, got 9" in str(why_not("small_linear", "cpu", *args))
    assert torch.equal(ops.small_linear(*args), R.small_linear_ref(*args))
    few = linear_args(CELL | {"dtype": torch.float64})
    leaves = [a.requires_grad_() for a in few if isinstance(a, Tensor)]
    assert torch.autograd.gradcheck(lambda *a: ops.small_linear(*a, True), leaves)
    with use_backend(small_linear="cpu"), pytest.raises(BackendUnavailable, match="no gradient, and one is asked for"):
        ops.small_linear(*few)


ATTENTION = {
    "sizes": ((1, 1, 1, 1), (2, 2, 40, 64), (3, 1, 70, 24), (1, 5, 33, 7), (2, 3, 130, 72)),
    "place": ("first", "middle", "last"),
    "scale": (None, 0.3),
    "layout": ("plain", "transposed"),
    "dtype": (torch.float32, *HALVES, torch.float64),
}


def attention_args(cell: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(len(cell_id(cell)))
    draw = lambda *shape: (2 * torch.randn(shape, generator=source)).to(cell["dtype"])  # noqa: E731
    batch, heads, length, width = cell["sizes"]
    position = {"first": 0, "middle": length // 2, "last": length - 1}[cell["place"]]
    cache = draw(2, batch, heads, length, width)
    if cell["layout"] == "transposed":
        cache = draw(2, batch, length, heads, width).transpose(2, 3)
    return draw(batch, 3, heads, width), cache, torch.tensor([position])


@pytest.mark.parametrize("cell", pairwise(ATTENTION), ids=cell_id)
def test_decode_attention(cell: dict[str, Any]) -> None:
    """The result by the criterion, and the cache: the new token's key and value, nothing else changed, no more read."""
    qkv, cache, position = attention_args(cell)
    require_backend("decode_attention", qkv, cache, position)
    caches: list[Tensor] = []

    def fast(qkv: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        mine = cache.clone(memory_format=torch.preserve_format)
        mine[:, :, :, int(position) :] = float("nan")
        caches.append(mine)
        return ops.decode_attention(qkv, mine, position, cell["scale"])

    def slow(qkv: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        return R.decode_attention_ref(qkv, cache.clone(), position, cell["scale"])

    with poisoned_empty():
        compare(fast, slow, (qkv, cache, position), ("out",))
    n = int(position)
    assert torch.equal(caches[-1][:, :, :, n], qkv[:, 1:].transpose(0, 1))
    assert torch.equal(caches[-1][:, :, :, :n], cache[:, :, :, :n]) and caches[-1][:, :, :, n + 1 :].isnan().all()


def test_the_oracle_is_attention() -> None:
    """Of the last of the tokens so far, by torch's own."""
    qkv, cache, position = attention_args(ATTENTION_CELL | {"dtype": torch.float64})
    got = R.decode_attention_ref(qkv, cache, position)
    q, n = qkv[:, 0].unsqueeze(2), int(position) + 1
    want = torch.nn.functional.scaled_dot_product_attention(q, cache[0, :, :, :n], cache[1, :, :, :n])
    torch.testing.assert_close(got, want.flatten(1), rtol=1e-12, atol=1e-12)


ATTENTION_CELL = {"sizes": (2, 2, 40, 16), "place": "middle", "scale": None, "layout": "plain"}


def test_large_scores_and_no_copy() -> None:
    qkv, cache, position = attention_args(ATTENTION_CELL | {"dtype": torch.float32})
    require_backend("decode_attention", qkv, cache, position)
    want = R.decode_attention_ref(qkv.double(), cache.double(), position, 1e4)
    torch.testing.assert_close(ops.decode_attention(qkv, cache, position, 1e4).double(), want, rtol=1e-4, atol=1e-5)
    weight = torch.ones(5, 32)
    with Count() as count:
        out = ops.decode_attention(qkv, cache, position)
        y = ops.small_linear(out, weight)
    assert count.bytes == out.nbytes + y.nbytes and not count.copies


def test_opcheck_and_compile() -> None:
    qkv, cache, position = attention_args(ATTENTION_CELL | {"dtype": torch.float32})
    backend = require_backend("decode_attention", qkv, cache, position)
    torch.library.opcheck(torch.ops.latte_fast.decode_attention.default, (qkv, cache, position, 0.25, backend))
    args = linear_args(CELL | {"dtype": torch.float32})
    torch.library.opcheck(torch.ops.latte_fast.small_linear.default, (*args, 1e-5, None, backend))

    def step(qkv: Tensor, cache: Tensor, position: Tensor, weight: Tensor) -> Tensor:
        return ops.small_linear(ops.decode_attention(qkv, cache, position), weight)

    weight, other = torch.randn(7, 32), cache.clone()
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(qkv, other, position, weight)
    assert torch.equal(got, step(qkv, cache, position, weight)) and torch.equal(other, cache)


X, W, Q, C, P = (torch.zeros(s) for s in ((2, 8), (5, 8), (2, 3, 2, 4), (2, 2, 2, 6, 4), (1,)))
AT = torch.tensor([6])
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: ops.small_linear(X[0], W), ValueError, r"x must be \(\.\.\., D\)"),
    (lambda: ops.small_linear(X[None], W), ValueError, r"x must be \(M, D\), got \(1, 2, 8\)"),
    (lambda: ops.small_linear(X, W[:, :4]), ValueError, r"weight must be \(N, D\) with D = 8, got \(5, 4\)"),
    (lambda: ops.small_linear(X, torch.zeros(8, 5).t()), ValueError, "weight must have a contiguous last dim"),
    (lambda: ops.small_linear(X, W, X[0]), ValueError, r"bias must be \(N,\) with N = 5, got \(8,\)"),
    (lambda: ops.small_linear(X, W, None, X[0]), ValueError, "must both be given or both be None, got one"),
    (lambda: ops.small_linear(X, W, residual=X), ValueError, r"residual must be \(M, N\) = \(2, 5\), got \(2, 8\)"),
    (lambda: ops.small_linear(X, W.half()), TypeError, "weight must have x's dtype torch.float32, got torch.float16"),
    (lambda: ops.small_linear(X, W, eps=-1.0), ValueError, "eps must be at least 0"),
    (lambda: ops.small_linear(X, W.char()), TypeError, "weight must be fp32, bf16, fp16 or fp64, got torch.int8"),
    (
        lambda: ops.small_linear(X, W, weight_scale=W[:, 0]),
        TypeError,
        "weight must be torch.int8 where",
    ),
    (lambda: ops.small_linear(X, W.char(), weight_scale=X[0]), ValueError, r"weight_scale must be \(N,\) with N = 5"),
    (
        lambda: ops.small_linear(X, W.char(), weight_scale=W[:, 0].half()),
        TypeError,
        "must be torch.float32, got",
    ),
    (lambda: ops.decode_attention(X, C, AT), ValueError, r"qkv must be \(B, 3, H, K\), got \(2, 8\)"),
    (lambda: ops.decode_attention(Q, C[:1], AT), ValueError, r"cache must be .* = \(2, 2, 2, L, 4\), got \(1, 2, 2, 6"),
    (lambda: ops.decode_attention(Q, C.half(), AT), TypeError, "cache must have qkv's dtype"),
    (lambda: ops.decode_attention(Q, C, P), TypeError, r"position must be \(1,\) int64, got \(1,\) torch.float32"),
    (lambda: ops.decode_attention(Q, C, 3), TypeError, r"position must be \(1,\) int64, got int"),
    (lambda: ops.decode_attention(Q, C, AT), ValueError, r"position must be in 0 \.\. 5, got 6"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
