"""norm_silu_halo and nearest_code against the oracle: values, gradients, layouts, bytes, compile, opcheck, refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import ops, use_backend
from latte_fast.ops.registration import LIBRARY
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import cell_id, pairwise
from tests.helpers.counting import Count
from tests.helpers.guards import poisoned_empty, require_backend

AXES = {
    "C": (1, 7, 32, 64),
    "size": ((2, 3, 5), (1, 1, 1), (1, 4, 2), (3, 2, 9)),
    "pads": ((1,) * 6, (0,) * 6, (2, 1, 1, 1, 1, 1), (0, 3, 2, 0, 1, 0)),
    "groups": ("one", "each"),
    "layout": ("channels-last", "plain", "sliced"),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
}


def inputs(cell: dict[str, Any], batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    t, h, w = cell["size"]
    x = 2 * draw(batch, cell["C"], t, h, w + 1)
    x = x.to(cell["dtype"])
    if cell["layout"] != "plain":
        x = x.contiguous(memory_format=torch.channels_last_3d)
    x = x[..., :w] if cell["layout"] == "sliced" else x[..., 1:].clone()
    wide = torch.float64 if cell["dtype"] == torch.float64 else torch.float32
    vectors = [draw(batch if cell["groups"] == "each" else 1, cell["C"]).to(wide) for _ in range(2)]
    return x.requires_grad_(), *(v.requires_grad_() for v in vectors)  # type: ignore[return-value]


@pytest.mark.parametrize("cell", pairwise(AXES), ids=cell_id)
def test_values_and_gradients(cell: dict[str, Any]) -> None:
    x, scale, shift = inputs(cell)
    require_backend("norm_silu_halo", x, scale, shift, cell["pads"])
    with poisoned_empty():
        compare(
            lambda *a: ops.norm_silu_halo(*a, cell["pads"]),
            lambda *a: R.norm_silu_halo_ref(*a, cell["pads"]),
            (x, scale, shift),
            ("out", "dx", "dscale", "dshift"),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_nan_and_infinity_are_torchs(dtype: torch.dtype) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, -90.0, -65504.0], dtype=dtype)
    x = x.repeat(11)[None, :, None, None, None].repeat(1, 1, 1, 1, 2).requires_grad_()  # whole vectors, and the last
    ones = torch.ones(1, 66, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    require_backend("norm_silu_halo", x, ones, 0 * ones, (0,) * 6)
    got, want = (f(x, ones, 0 * ones, (0,) * 6) for f in (ops.norm_silu_halo, R.norm_silu_halo_ref))
    assert want[:, 2].isnan().all()
    torch.testing.assert_close(got, want, equal_nan=True)
    dout = torch.randn_like(want)
    a, b = (torch.autograd.grad(y, x, dout)[0] for y in (got, want))
    finite = x[0, :, 0, 0, 0].isfinite()
    torch.testing.assert_close(a[:, finite], b[:, finite])


@pytest.mark.parametrize("cell", pairwise(AXES)[::3], ids=cell_id)
def test_float64(cell: dict[str, Any]) -> None:
    args = inputs(cell | {"dtype": torch.float64})
    got, want = ops.norm_silu_halo(*args, cell["pads"]), R.norm_silu_halo_ref(*args, cell["pads"])
    dout = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, args, dout), torch.autograd.grad(want, args, dout), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


CELL = {"C": 16, "size": (3, 4, 6), "pads": (1,) * 6, "groups": "each", "layout": "channels-last"}


def test_tails_are_finite() -> None:
    v = torch.tensor([-1e30, -100.0, -20.0, 0.0, 20.0, 100.0, 1e30])
    x = v.view(1, 1, 1, 1, -1).clone().requires_grad_()
    ones = torch.ones(1, 1)
    out = ops.norm_silu_halo(x, ones, 0 * ones)
    (dx,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out.flatten()[1:], torch.nn.functional.silu(v[1:]), rtol=1e-6, atol=1e-30)
    assert dx.isfinite().all() and dx.flatten()[0].abs() < 1e-30 and dx.flatten()[-1] == 1


def test_gradcheck_and_opcheck() -> None:
    x, scale, shift = inputs(CELL | {"dtype": torch.float64, "C": 3, "size": (2, 1, 3)})
    assert torch.autograd.gradcheck(lambda *a: ops.norm_silu_halo(*a, (2, 1, 0, 1, 1, 1)), (x, scale, shift))
    overload = torch.ops.latte_fast.norm_silu_halo.default
    torch.library.opcheck(overload, (x, scale, shift, [1] * 6, "cpu"))
    z, codes = torch.randn(5, 3), torch.randn(4, 3)
    torch.library.opcheck(torch.ops.latte_fast.nearest_code.default, (z, codes, "cpu"))
    assert LIBRARY is not None


def test_one_read_one_write() -> None:
    """What a call allocates is its result, and an unpadded convolution reads that as it lies."""
    x, scale, shift = (t.detach() for t in inputs(CELL | {"dtype": torch.bfloat16}))
    require_backend("norm_silu_halo", x, scale, shift, CELL["pads"])
    with Count() as count:
        out = ops.norm_silu_halo(x, scale, shift, (1,) * 6)
    assert count.bytes == out.numel() * 2 and not count.copies
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert ops.nearest_code(torch.randn(4, 3), torch.randn(5, 3)).dtype == torch.int64


def test_compiles_without_a_break() -> None:
    x, scale, shift = inputs(CELL | {"dtype": torch.float32})

    def step(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        h = ops.norm_silu_halo(x, scale, shift, (1,) * 6)
        return h, ops.nearest_code(h.flatten(1), torch.ones(3, h[0].numel()))

    out, near = torch.compile(step, fullgraph=True, backend="aot_eager")(x, scale, shift)
    want, same = step(x, scale, shift)
    assert torch.equal(out, want) and torch.equal(near, same)
    out.square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "codes", "width"), [(1, 1, 1), (130, 200, 7), (65, 64, 16), (64, 257, 32), (0, 3, 4)])
def test_nearest_code(rows: int, codes: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows + codes)
    e = torch.randn(codes, width, generator=generator).to(dtype)
    z = torch.randn(rows, width, generator=generator).to(dtype)
    require_backend("nearest_code", z, e)
    got = ops.nearest_code(z, e)
    near = torch.cdist(z.double(), e.double()).square()
    if rows:
        want = near.topk(min(2, codes), largest=False)
        sure = (want.values[:, -1] - want.values[:, 0] > 1e-5) | (codes == 1)
        assert torch.equal(got[sure], want.indices[sure, 0]) and sure.float().mean() > 0.9
    assert got.shape == (rows,)


def test_nearest_code_takes_the_first_of_equals() -> None:
    e = torch.randn(300, 8)
    e[70] = e[3]
    assert (ops.nearest_code(e[[3, 70, 200]], e) == torch.tensor([3, 3, 200])).all()
    with use_backend("reference"):
        assert (ops.nearest_code(e[[3, 70, 200]], e) == torch.tensor([3, 3, 200])).all()


X, V = torch.zeros(2, 3, 1, 2, 2), torch.zeros(1, 3)
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: ops.norm_silu_halo(X[0], V, V), ValueError, r"x must be \(B, C, T, H, W\) with no empty axis"),
    (lambda: ops.norm_silu_halo(X.int(), V, V), TypeError, "x must be fp32, bf16, fp16 or fp64, got torch.int32"),
    (lambda: ops.norm_silu_halo(X, V[:, :2], V), ValueError, r"scale must be \(1, C\) or \(B, C\) with B = 2, C = 3"),
    (lambda: ops.norm_silu_halo(X, V, V.expand(2, 3)), ValueError, "shift must have scale's shape"),
    (lambda: ops.norm_silu_halo(X, V, V, (1, 1)), ValueError, "pads must be six numbers from 0 on"),
    (lambda: ops.norm_silu_halo(X, V, V, (1, 1, 1, 1, 1, -1)), ValueError, "pads must be six numbers from 0 on"),
    (lambda: ops.nearest_code(V, V[:, :2]), ValueError, r"codes must be \(K, D\) with D = 3, got \(1, 2\)"),
    (lambda: ops.nearest_code(V.half(), V), TypeError, "z must be fp32 or fp64, got torch.float16"),
    (lambda: ops.nearest_code(V, V.double()), TypeError, "codes must have z's dtype"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
