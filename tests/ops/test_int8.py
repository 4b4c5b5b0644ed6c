"""The ops of integers: the oracle against float64, the dispatcher, compile, and what they refuse."""

import pytest
import torch
from torch import Tensor

from latte_fast import ops
from latte_fast.ops.registration import REGISTRY
from latte_fast.ops.sizes import Sizes
from latte_fast.reference import functional as R
from tests.helpers.int8 import assert_rounded, check_edges, edge_rows

NAMES = ("rows_int8", "norm_modulate_int8", "gate_residual_norm_modulate_int8", "bias_gelu_int8", "linear_int8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("unsigned", [False, True])
def test_oracle_rounds_to_nearest(unsigned: bool, dtype: torch.dtype) -> None:
    x, y = (torch.randn(2, 6, 72, dtype=dtype) for _ in range(2))
    gate, shift, scale = torch.randn(3, 2, 72, dtype=dtype)
    exact = R.norm_modulate_ref(x.double(), shift.double(), scale.double())
    assert_rounded("rows", *R.rows_int8_ref(x, unsigned), x.double())
    assert_rounded("norm", *R.norm_modulate_int8_ref(x, shift, scale, unsigned=unsigned), exact)
    out, *h = R.gate_residual_norm_modulate_int8_ref(
        x, y, gate, shift, scale, y_bias=gate[0], pos=x[0], unsigned=unsigned
    )
    assert_rounded("fused", *h, R.norm_modulate_ref(out.double(), shift.double(), scale.double()))
    exact = R.bias_gelu_ref(x.double(), gate[0].double())
    assert_rounded("gelu", *R.bias_gelu_int8_ref(x, gate[0], None, unsigned), exact)
    factor = torch.rand(72) + 0.5
    assert_rounded("gelu times a factor", *R.bias_gelu_int8_ref(x, gate[0], factor, unsigned), exact * factor)


def test_a_scale_too_small_and_cut_values_are_seen() -> None:
    x = torch.randn(4, 64)
    values, scale = R.rows_int8_ref(x)
    with pytest.raises(AssertionError, match="scales"):
        assert_rounded("rows", values, scale * (127 / 126), x.double())
    with pytest.raises(AssertionError, match=r"too far"):
        assert_rounded("rows", (x / scale).to(torch.int8), scale, x.double())


def test_edges() -> None:
    for unsigned in (False, True):
        check_edges(*R.rows_int8_ref(edge_rows(), unsigned))
        check_edges(*ops.rows_int8(edge_rows(), unsigned=unsigned))


@pytest.mark.parametrize("name", NAMES)
def test_op(name: str) -> None:
    """No gradient, silently least of all; traced in one graph; the fake's shapes are the result's."""
    sizes = Sizes(2, 2, 3, width=16, heads=2, device=torch.device("cpu"), dtype=torch.float32)
    args = REGISTRY[name].example(sizes)
    op = getattr(ops, name)
    want = op(**args)
    got = torch.compile(op, fullgraph=True, backend="eager")(**args)
    pairs = zip(*((r,) if isinstance(r, Tensor) else r for r in (got, want)), strict=True)
    assert all(torch.equal(a.float(), b.float()) for a, b in pairs)
    first = next(iter(args))
    if name == "linear_int8":
        with pytest.raises(ValueError, match="linear_int8: has no gradient"):
            op(**args | {"bias": torch.zeros(64, requires_grad=True)})
        fakes = (REGISTRY[name].fake(*args.values()),)
        want = (want,)
    else:
        with pytest.raises(ValueError, match=f"{name}: has no gradient; call it under torch.no_grad"):
            op(**args | {first: args[first].requires_grad_()})
        with pytest.raises(TypeError, match=f"{name}: {first} must be a tensor, got int"):
            op(**args | {first: 3})
        with pytest.raises(TypeError, match=f"{name}: unsigned must be True or False, got int"):
            op(**{n: a.detach() for n, a in args.items()}, unsigned=1)
        count = len(REGISTRY[name]._arguments) - 1
        given = (*args.values(), *[None] * 4)[: count - 1]
        fakes = REGISTRY[name].fake(*given, False)
    assert [(f.shape, f.dtype) for f in fakes] == [(w.shape, w.dtype) for w in want]


@pytest.mark.parametrize("depth", [7, 1040, 1041, 4608])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
def test_sums_are_exact(dtype: torch.dtype, depth: int) -> None:
    """The largest integers, whose sums fp32 holds up to a depth of 1,040."""
    x, weight = (torch.full((n, depth), value, dtype=torch.int64) for n, value in ((3, 127), (2, -127)))
    x[1, ::2], weight[1, ::3] = -127, 127
    want = (x @ weight.t()).float()
    rows = (x + 128).to(dtype) if dtype == torch.uint8 else x.to(dtype)
    ones, scale = torch.ones(3, 1), torch.tensor([1.0, 0.5])
    got = ops.linear_int8(rows, ones, weight.to(torch.int8), scale, None, torch.float32)
    assert torch.equal(got, want * scale)
    biased = ops.linear_int8(rows, 2 * ones, weight.to(torch.int8), scale, scale, torch.float32)
    assert torch.equal(biased, want * 2 * scale + scale)


def test_what_linear_int8_refuses() -> None:
    x, w = torch.ones(3, 8, dtype=torch.int8), torch.ones(4, 8, dtype=torch.int8)
    s, t = torch.ones(3, 1), torch.ones(4)
    for change, error, message in (
        ({"x": x.float()}, TypeError, "x must be torch.int8 or torch.uint8, got torch.float32"),
        ({"weight": w.to(torch.uint8)}, TypeError, "weight must be torch.int8, got torch.uint8"),
        ({"weight": w[:, :4]}, ValueError, r"weight must be \(N, K\) with K = 8, got \(4, 4\)"),
        ({"x_scale": s.half()}, TypeError, "x_scale must be fp32, got torch.float16"),
        ({"x_scale": s[:2]}, ValueError, r"x_scale must be \(3, 1\), got \(2, 1\)"),
        ({"weight_scale": s}, ValueError, r"weight_scale must be \(4,\), got \(3, 1\)"),
        ({"bias": t[:3]}, ValueError, r"bias must be \(N,\) with N = 4"),
        ({"out_dtype": torch.int32}, TypeError, "out_dtype must be fp32, bf16, fp16 or fp64, got torch.int32"),
        ({"weight": w.to_sparse()}, TypeError, "weight must be a dense tensor, got torch.sparse_coo"),
        ({"x": x[:, :0]}, ValueError, r"x must be \(..., K\)"),
    ):
        with pytest.raises(error, match=f"linear_int8: {message}"):
            ops.linear_int8(**{"x": x, "x_scale": s, "weight": w, "weight_scale": t} | change)
    assert ops.linear_int8(x[:0], s[:0], w, t).shape == (0, 4)
