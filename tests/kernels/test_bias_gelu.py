"""bias_gelu's kernels against the oracle."""

import pytest
import torch

from latte_fast import ops
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import pairwise
from tests.kernels.cases import name, randn

AXES = {
    "M": (1, 7, 256, 1536, 4608, 4609),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "rows": ((5,), (2, 1, 17), (3, 4)),
    "size": (1.0, 6.0),
}


@pytest.mark.parametrize("case", pairwise(AXES), ids=name)
def test_bias_gelu_pairs(case: dict) -> None:
    # 6 reaches the tails, where 1 - sigmoid cancels
    u = (case["size"] * randn(*case["rows"], case["M"])).to(case["dtype"]).requires_grad_()
    b = randn(case["M"], dtype=case["dtype"], seed=1).requires_grad_()
    compare(ops.bias_gelu, R.bias_gelu_ref, (u, b), ("a", "du", "db"))


def test_bias_gelu_tails_are_finite() -> None:
    u = torch.tensor([[-1e12, -100.0, -10.0, 0.0, 10.0, 100.0, 1e12]], device=randn(1).device).requires_grad_()
    a = ops.bias_gelu(u, torch.zeros_like(u[0]))
    (du,) = torch.autograd.grad(a, u, torch.ones_like(a))
    assert torch.allclose(a, R.bias_gelu_ref(u, None), rtol=1e-6, atol=1e-30)
    assert torch.allclose(du, torch.tensor([[0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]], device=u.device), atol=1e-6)
