"""norm_silu_halo's and nearest_code's kernels against the oracle."""

import pytest
import torch

from latte_fast import ops
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import pairwise
from tests.kernels.cases import name, randn

AXES = {
    "C": (1, 7, 64, 130),
    "size": ((2, 3, 5), (1, 1, 1), (3, 2, 9)),
    "pads": ((1,) * 6, (0,) * 6, (2, 1, 1, 1, 1, 1), (0, 3, 2, 0, 1, 0)),
    "groups": (1, 2),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
}


CELLS = [
    {"C": 130, "size": (1, 1, 2), "pads": (0, 1, 1, 0, 0, 0), "groups": 1, "dtype": torch.float32},
    {"C": 7, "size": (2, 3, 5), "pads": (1,) * 6, "groups": 2, "dtype": torch.bfloat16},
    {"C": 64, "size": (3, 2, 9), "pads": (0,) * 6, "groups": 2, "dtype": torch.float16},
    {"C": 1, "size": (1, 1, 1), "pads": (2, 1, 1, 1, 1, 1), "groups": 1, "dtype": torch.float32},
]
MORE = [pytest.param(case, marks=pytest.mark.slow) for case in pairwise(AXES)]


@pytest.mark.parametrize("case", [*CELLS, *MORE], ids=lambda case: name(case))
def test_norm_silu_halo_pairs(case: dict) -> None:
    # of two values torch's own error says nothing
    batch = 2 if case["C"] * case["size"][2] > 1 else 64
    x = (2 * randn(batch, case["C"], *case["size"])).to(case["dtype"])
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    scale, shift = (randn(case["groups"], case["C"], seed=seed).requires_grad_() for seed in (1, 2))
    compare(
        lambda *a: ops.norm_silu_halo(*a, case["pads"]),
        lambda *a: R.norm_silu_halo_ref(*a, case["pads"]),
        (x, scale, shift),
        ("out", "dx", "dscale", "dshift"),
    )


@pytest.mark.parametrize(("rows", "codes", "width"), [(1, 1, 1), (70, 130, 20), (64, 64, 96)])
def test_nearest_code(rows: int, codes: int, width: int) -> None:
    z, e = randn(rows, width), randn(codes, width, seed=1)
    near = torch.cdist(z.double(), e.double()).square()
    want = near.topk(min(2, codes), largest=False)
    got = ops.nearest_code(z, e)
    sure = want.values[:, -1] - want.values[:, 0] > 1e-5 if codes > 1 else torch.ones(rows, dtype=torch.bool)
    assert torch.equal(got[sure], want.indices[sure, 0]) and sure.float().mean() > 0.9
