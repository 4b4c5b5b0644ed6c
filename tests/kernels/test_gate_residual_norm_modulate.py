"""gate_residual_norm_modulate's kernels against the oracle: with and without bias, position and either gradient."""

import pytest
import torch
from torch import Tensor

from latte_fast import ops
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import pairwise
from tests.kernels.cases import DTYPES, LAYOUTS, groups, laid_out, name, randn

POSITIONS = {"none": None, "frame": (0, 1, 0), "patch": (0, 0, 1), "token": (0, 1, 1), "clip": (1, 1, 1)}
AXES = {
    "D": (64, 72, 384, 768, 1152, 1153),
    "dtype": tuple(DTYPES),
    "layout": LAYOUTS[:4],
    "y_layout": LAYOUTS[:4],
    "rows": ((2, 1, 5), (2, 2, 3), (1, 3, 4)),
    "bias": (False, True),
    "pos": tuple(POSITIONS),
    "outputs": ("both", "x_out", "h"),
}


def check(
    D: int, dtype: str, layout: str, y_layout: str, rows: tuple[int, int, int], bias: bool, pos: str, outputs: str
) -> None:
    wide, narrow = DTYPES[dtype]
    x, y = laid_out(layout, *rows, D, wide), laid_out(y_layout, *rows, D, narrow, seed=1)
    gate, shift, scale = groups(3, rows[0], D, narrow)
    if outputs == "x_out":
        # x' does not depend on them
        shift, scale = shift.detach(), scale.detach()
    y_bias = randn(D, dtype=narrow, seed=2).requires_grad_() if bias else None
    where = POSITIONS[pos]
    position = None
    if where:
        position = randn(*(n if w else 1 for n, w in zip(rows, where, strict=True)), D, dtype=wide, seed=3)
        position.requires_grad_()

    def keep(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...] | Tensor:
        return pair if outputs == "both" else pair[outputs == "h"]

    def fast(x, y, gate, shift, scale, y_bias, position):
        return keep(ops.gate_residual_norm_modulate(x, y, gate, shift, scale, y_bias=y_bias, pos=position))

    def oracle(x, y, gate, shift, scale, y_bias, position):
        return keep(R.gate_residual_norm_modulate_ref(x, y, gate, shift, scale, y_bias=y_bias, pos=position))

    names = ["x_out", "h"] if outputs == "both" else [outputs]
    names += ["dx", "dy", "dgate"] + (["dshift", "dscale"] if outputs != "x_out" else [])
    names += ["dy_bias"] * bias + ["dpos"] * bool(where)
    compare(fast, oracle, (x, y, gate, shift, scale, y_bias, position), names)


@pytest.mark.parametrize("case", pairwise(AXES), ids=name)
def test_gate_residual_norm_modulate_pairs(case: dict) -> None:
    check(**case)


@pytest.mark.slow
@pytest.mark.parametrize("outputs", AXES["outputs"])
@pytest.mark.parametrize("pos", AXES["pos"])
@pytest.mark.parametrize("bias", AXES["bias"])
@pytest.mark.parametrize("layout", AXES["layout"])
@pytest.mark.parametrize("dtype", AXES["dtype"])
@pytest.mark.parametrize("D", AXES["D"])
def test_gate_residual_norm_modulate_product(
    D: int, dtype: str, layout: str, bias: bool, pos: str, outputs: str
) -> None:
    check(D, dtype, layout, "contiguous", (2, 2, 3), bias, pos, outputs)


def test_gate_residual_norm_modulate_is_its_two_halves() -> None:
    x, y = randn(2, 3, 5, 72), randn(2, 3, 5, 72, seed=1)
    gate, shift, scale = (v.detach() for v in groups(3, 2, 72, torch.float32))
    x_out, h = ops.gate_residual_norm_modulate(x, y, gate, shift, scale)
    assert torch.equal(h, ops.norm_modulate(x_out, shift, scale))
    assert torch.equal(x_out, ops.gate_residual(x, y, gate))
