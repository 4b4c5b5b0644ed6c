"""The 8-bit ops as ops: the oracle against float64, the dispatcher, compile, and what they refuse."""

import pytest
import torch

from latte_fast import ops
from latte_fast.ops.registration import REGISTRY
from latte_fast.ops.sizes import Sizes
from latte_fast.reference import functional as R
from tests.helpers.fp8 import FP8, assert_rounded, edge_rows, half_steps

NAMES = ("rows_fp8", "norm_modulate_fp8", "gate_residual_norm_modulate_fp8", "bias_gelu_fp8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_oracle_rounds_to_nearest(dtype: torch.dtype) -> None:
    x, y = (torch.randn(2, 6, 72, dtype=dtype) for _ in range(2))
    gate, shift, scale = torch.randn(3, 2, 72, dtype=dtype)
    exact = R.norm_modulate_ref(x.double(), shift.double(), scale.double())
    assert_rounded("rows", *R.rows_fp8_ref(x), x.double())
    assert_rounded("norm", *R.norm_modulate_fp8_ref(x, shift, scale), exact)
    out, *h = R.gate_residual_norm_modulate_fp8_ref(x, y, gate, shift, scale, y_bias=gate[0], pos=x[0])
    exact = R.norm_modulate_ref(out.double(), shift.double(), scale.double())
    assert_rounded("fused", *h, exact)
    exact = R.bias_gelu_ref(x.double(), gate[0].double())
    assert_rounded("gelu", *R.bias_gelu_fp8_ref(x, gate[0]), exact)
    factor = torch.rand(72) + 0.5
    assert_rounded("gelu times a factor", *R.bias_gelu_fp8_ref(x, gate[0], factor), exact * factor)


def test_a_scale_too_small_is_seen() -> None:
    """Rows over 440 instead of 448, or values cut off instead of rounded."""
    x = torch.randn(4, 64)
    values, scale = R.rows_fp8_ref(x)
    with pytest.raises(AssertionError, match="scales"):
        assert_rounded("rows", values, scale * (448 / 440), x.double())
    v = x / scale
    down = torch.where((values.float() - v) * v.sign() > 0, v - 2 * half_steps(v) * v.sign(), v).to(FP8)
    with pytest.raises(AssertionError, match=r"too far|whole range"):
        assert_rounded("rows", down, scale, x.double())


def test_edges() -> None:
    """Ties go to even; a row with a number that is not finite becomes NaN, and zeros stay zeros."""
    x = edge_rows()
    values, scale = R.rows_fp8_ref(x)
    grid = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    even = torch.arange(127, dtype=torch.uint8)
    ties = torch.where(even[:-1] % 2 == 0, grid[:-1], grid[1:])
    for i in range(3):  # powers of two change nothing
        assert torch.equal(values[i, :127].float(), grid) and torch.equal(values[i, 127:253].float(), ties)
        assert torch.equal(values[i, 253:379].float(), -ties)
    back = values.float() * scale
    assert torch.isfinite(back[:8]).all() and (back[5] == 0).all() and (scale[5] == 2.0**-100).all()
    assert back[8].isnan().all() and back[9].isnan().any() and back[10].isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_op(name: str) -> None:
    """No gradient, silently least of all; traced in one graph; the fake's shapes are the result's."""
    sizes = Sizes(2, 2, 3, width=16, heads=2, device=torch.device("cpu"), dtype=torch.float32)
    args = REGISTRY[name].example(sizes)
    op = getattr(ops, name)
    want = op(**args)
    got = torch.compile(op, fullgraph=True, backend="eager")(**args)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(got, want, strict=True))
    first = next(iter(args))
    with pytest.raises(ValueError, match=f"{name}: has no gradient; call it under torch.no_grad"):
        op(**args | {first: args[first].requires_grad_()})
    with pytest.raises(TypeError, match=f"{name}: {first} must be a tensor, got int"):
        op(**args | {first: 3})
    fakes = REGISTRY[name].fake(*(list(args.values()) + [None] * 3)[: len(REGISTRY[name]._arguments) - 1])
    assert [(f.shape, f.dtype) for f in fakes] == [(w.shape, w.dtype) for w in want]


def test_a_pos_that_does_not_fit_is_named() -> None:
    x, g = torch.randn(2, 3, 8), torch.randn(2, 8)
    with pytest.raises(ValueError, match="gate_residual_norm_modulate_fp8: pos must broadcast"):
        ops.gate_residual_norm_modulate_fp8(x, x, g, g, g, pos=torch.randn(4, 8))
