"""The discriminators against the authors' formula: counts, features, gradients, running statistics."""

import pytest
import torch

from latte_fast import reference
from latte_fast.models.tats.discriminators import Discriminator
from latte_fast.testing import relative_error
from tests.helpers.tiny_vqgan import clip, scatter


def test_counts() -> None:
    counts = [sum(p.numel() for p in Discriminator(axes).parameters()) for axes in (2, 3)]
    assert counts == [2_766_529, 11_057_857]


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.float64, 1e-11)], ids=["fp32", "fp64"])
def test_features_equal_the_oracle(axes: int, dtype: torch.dtype, limit: float) -> None:
    torch.manual_seed(0)
    ours, oracle = Discriminator(axes, 8).to(dtype), reference.vqgan.Discriminator(axes, 8).double()
    oracle.load_state_dict(scatter(ours).state_dict(), strict=True)
    x = clip(3, 4, 24).to(dtype)
    x = (x[:, :, 0] if axes == 2 else x).requires_grad_()
    wide = x.detach().double().requires_grad_()
    for _ in range(2):
        got, want = ours(x), oracle(wide)
    generator = torch.Generator().manual_seed(1)
    douts = [torch.randn(f.shape, generator=generator).double() for f in want]
    grads = torch.autograd.grad(got, x, [d.to(dtype) for d in douts])
    wanted = torch.autograd.grad(want, wide, douts)
    for a, b in zip([*got, *grads], [*want, *wanted], strict=True):
        assert relative_error(a, b) <= 3 * limit
    for (name, a), b in zip(ours.named_buffers(), oracle.buffers(), strict=True):
        assert relative_error(a, b) <= limit, name
