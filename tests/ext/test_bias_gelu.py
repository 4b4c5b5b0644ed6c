"""bias_gelu on the C++ backend: the criterion, and its accuracy against float64 over the whole range."""

import pytest
import torch
import torch.nn.functional as F

from latte_fast import _ext, ops, use_backend
from latte_fast._ext import bias_gelu
from latte_fast.reference.functional import bias_gelu_ref
from latte_fast.testing import compare
from tests.helpers.guards import poisoned_empty

pytestmark = pytest.mark.skipif(_ext.why_not_built() is not None, reason=str(_ext.why_not_built()))


def exact(z: torch.Tensor) -> torch.Tensor:
    """tanh-GELU in float64 as z sigmoid(2 w): 1 + tanh(w) would cancel for negative z."""
    z = z.double()
    return z * torch.sigmoid(2 * 0.7978845608028654 * (z + 0.044715 * z**3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("shape", [(1, 64), (7, 72), (3, 5, 1153), (2, 4, 7, 3072), (130, 33), (1, 1)], ids=str)
def test_bias_gelu(shape, dtype):
    torch.manual_seed(0)
    u = torch.randn(shape).mul(2).to(dtype).requires_grad_()
    b = torch.randn(shape[-1]).to(dtype).requires_grad_()
    with use_backend("cpu"), poisoned_empty():
        compare(ops.bias_gelu, bias_gelu_ref, (u, b), ["a", "du", "db"])


def test_bias_gelu_fp32_accuracy():
    z = torch.cat(
        [torch.linspace(-30, 30, 400_001), torch.randn(100_000) * 3, torch.tensor([1e20, -1e20, 3e38, -3e38])]
    )
    with use_backend("cpu"):
        a = ops.bias_gelu(z[None])[0]
    error = (a.double() - exact(z)).abs() / z.abs().double().clamp(min=1)
    assert error.max() <= 1e-6


def test_bias_gelu_bf16_is_nearest_or_neighbour():
    z = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    z = z[z.isfinite()]
    with use_backend("cpu"):
        a = ops.bias_gelu(z[None].clone())[0]
    want = exact(z)
    nearest = want.to(torch.bfloat16)

    def order(x):  # neighbours in value are neighbours in this integer
        i = x.view(torch.int16).int()
        return torch.where(i < 0, -(i & 0x7FFF), i)

    steps = (order(a) - order(nearest)).abs()
    visible = want.abs() > 2.0**-122  # below, the kernels may flush to zero
    assert steps[visible].max() <= 1
    assert (a[~visible].abs() <= 2.0**-121).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_bias_gelu_at_nan_and_infinity_is_torchs(dtype):
    """In whole vectors, in the last one and in place; -inf too, where a tanh of -1 times -inf is NaN."""
    u = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.0, -9.0, -65504.0], dtype=dtype).repeat(3, 3)
    b, da = torch.zeros(21, dtype=dtype), torch.randn(3, 21).to(dtype)
    found = {}
    for backend in ("cpu", "reference"):
        x, bias = u.clone().requires_grad_(), b.clone().requires_grad_()
        with use_backend(backend):
            a = ops.bias_gelu(x, bias)
        found[backend] = (a.detach(), *torch.autograd.grad(a, (x, bias), da))
    assert found["reference"][0][:, 2].isnan().all() and found["reference"][0][:, 1].isposinf().all()
    torch.testing.assert_close(found["cpu"][0], found["reference"][0], equal_nan=True)
    finite = u[0].isfinite()
    x, bias = u[:, finite].double().requires_grad_(), b[finite].double().requires_grad_()
    upstream = da[:, finite].double()
    true = torch.autograd.grad(F.gelu(x + bias, approximate="tanh"), (x, bias), upstream)
    limit = 2 * torch.finfo(dtype).eps * upstream.abs() + (1e-9 if dtype == torch.float64 else 1e-5)
    for got, want, most in zip(found["cpu"][1:], true, (limit, limit.sum(0)), strict=True):
        assert ((got[..., finite].double() - want).abs() <= most).all()
    bias_gelu.bias_gelu_fwd(u, b, out=u)
    assert torch.equal(u.nan_to_num(7.0), found["cpu"][0].nan_to_num(7.0))


def test_bias_gelu_gradcheck():
    u, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((5, 7), (7,)))
    with use_backend("cpu"):
        assert torch.autograd.gradcheck(ops.bias_gelu, (u, b))
