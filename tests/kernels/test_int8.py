"""The kernels whose rows leave as integers, and their product: half a step from the exact value, exact sums."""

import pytest
import torch

from latte_fast import ops
from latte_fast.kernels import int8, linear_int8, rows
from latte_fast.reference import functional as R
from tests.helpers.cells import pairwise
from tests.helpers.int8 import assert_rounded, check_edges, edge_rows
from tests.kernels.cases import DTYPES, groups, laid_out, name, randn
from tests.kernels.test_fp8 import AXES, norm

TILES = (linear_int8.Tile(16, 32, 32, 4, 2), linear_int8.Tile(32, 16, 64, 4, 3), linear_int8.Tile(16, 32, 32, 4, 2, 1))


@pytest.mark.parametrize("case", pairwise(AXES), ids=name)
def test_every_op_rounds(case: dict) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", pairwise(AXES | {"D": (64, 384, 768, 1152, 1153), "rows": ((2, 1, 5), (2, 3, 4))}), ids=name
)
def test_every_op_rounds_at_the_presets_widths(case: dict) -> None:
    check(case)


def check(case: dict) -> None:
    D, layout, (B, F, N) = case["D"], case["layout"], case["rows"]
    wide, narrow = DTYPES[case["dtype"]]
    x, y = (laid_out(layout, B, F, N, D, dtype, seed).detach() for seed, dtype in enumerate((wide, narrow)))
    gate, shift, scale = (t.detach() for t in groups(3, B, D, narrow))
    bias = randn(D, dtype=narrow, seed=5)
    with torch.no_grad():
        assert_rounded("norm", *ops.norm_modulate_int8(x, shift, scale), norm(x, shift, scale))
        pos = randn(N, D, dtype=wide, seed=6) if layout == "contiguous" else None
        out, *fused = ops.gate_residual_norm_modulate_int8(x, y, gate, shift, scale, y_bias=bias, pos=pos)
        plain, _ = ops.gate_residual_norm_modulate(x, y, gate, shift, scale, y_bias=bias, pos=pos)
        assert torch.equal(out, plain)
        if rows.interpreted() and wide == torch.bfloat16:  # whose x' is rounded after the kernel
            out = R.gate_residual_ref(x.double(), y.double() + bias, gate.double()) + (0 if pos is None else pos)
        assert_rounded("fused", *fused, norm(out, shift, scale))
        # a modulation and GELU that hold the factor of the next layer's input
        shift, scale, factor = (randn(*s, seed=7) for s in (shift.shape, scale.shape, (D,)))
        assert_rounded("wide norm", *ops.norm_modulate_int8(x, shift, scale), norm(x, shift, scale))
        wide_fused = ops.gate_residual_norm_modulate_int8(x, y, gate, shift, scale, y_bias=bias, pos=pos)[1:]
        assert_rounded("wide fused", *wide_fused, norm(out, shift, scale))
        gelu = R.bias_gelu_ref(y.double(), bias.double())
        assert_rounded("gelu", *ops.bias_gelu_int8(y, bias), gelu)
        assert_rounded("gelu times a factor", *ops.bias_gelu_int8(y, bias, factor=factor), gelu * factor)
        got, want = ops.rows_int8(y), R.rows_int8_ref(y)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_edges_are_the_oracles() -> None:
    values, scale = ops.rows_int8(edge_rows().to(randn(1).device))
    check_edges(values.cpu(), scale.cpu())
    assert ops.bias_gelu_int8(torch.full((2, 64), float("nan"), device=scale.device))[1].isnan().all()


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("count", "n", "k"), [(21, 48, 80), (1, 16, 32), (40, 33, 130), (70, 49, 144)])
def test_products_are_exact(count: int, n: int, k: int, tile: linear_int8.Tile) -> None:
    """In fp32 the oracle's bits but for the rounding of both scales; several programs, tails on all axes, a bias."""
    torch.manual_seed(0)
    device = randn(1).device
    x, w = (torch.randint(-127, 128, shape, dtype=torch.int8).to(device) for shape in ((count, k), (n, k)))
    x_scale, w_scale = torch.ones(count, 1, device=device), torch.ones(n, device=device)
    sums = (x.cpu().int() @ w.cpu().int().t()).float()
    assert torch.equal(linear_int8.linear_int8_fwd(x, x_scale, w, w_scale, None, torch.float32, tile).cpu(), sums)
    x_scale, w_scale, bias = torch.rand_like(x_scale), torch.rand_like(w_scale), randn(n, dtype=torch.bfloat16)
    for dtype, most in ((torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)):
        got = linear_int8.linear_int8_fwd(x, x_scale, w, w_scale, bias, dtype, tile)
        want = R.linear_int8_ref(x, x_scale, w, w_scale, bias, torch.float32)
        assert got.dtype == dtype and float((got.float() - want).abs().max()) <= most * float(want.abs().max())


def test_what_the_kernels_do_not_take() -> None:
    x, ones = torch.zeros(0, 3, 64, device=randn(1).device), torch.zeros(0, 64, device=randn(1).device)
    for values, scale in (ops.rows_int8(x), ops.norm_modulate_int8(x, ones, ones), ops.bias_gelu_int8(x)):
        assert values.shape == x.shape and scale.shape == (0, 3, 1) and values.dtype == torch.int8
    assert "signed integers" in str(int8.why_not(x, True)) and int8.why_not(x, False) is None
    bytes_ = torch.zeros(2, 8, dtype=torch.uint8)
    assert "signed integers" in str(linear_int8.why_not(bytes_, x, bytes_.to(torch.int8), x))
    apart = torch.zeros(8, 4, dtype=torch.int8).t()
    assert "contiguous" in str(linear_int8.why_not(bytes_.to(torch.int8), x, apart, x))
