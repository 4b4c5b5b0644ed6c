"""What the policies keep, beyond what the model tests see on a CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latte_fast.models.latte.block import BlockContext, Pending
from latte_fast.modules.recompute import POLICIES, run_block
from tests.helpers.counting import Count


class _InFp8(torch.autograd.Function):
    """x w^T as fp8 layers compute it, differentiated by themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        one = torch.ones(())
        halves = (z.detach().to(torch.float8_e4m3fn) for z in (x, w.t()))
        return torch._scaled_mm(*halves, scale_a=one, scale_b=one, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy @ ctx.saved_tensors[0], None


class TwoLayers(nn.Module):
    """A product of the MLP's width, then one back from it."""

    hidden = 64

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(64, 32) / 8), nn.Parameter(torch.randn(32, 64) / 8)

    def forward(self, x: Tensor, *others: Any) -> tuple[Tensor, Pending]:
        u = _InFp8.apply(x, self.up).sin()
        y = _InFp8.apply(u, self.down)
        return x.cos(), Pending(y.cos(), torch.ones(1, 32), None)


@pytest.mark.parametrize(("policy", "products"), [("none", 2), ("elementwise", 2), ("mlp", 3), ("block", 4)])
def test_products_in_fp8_are_kept_as_others(policy: str, products: int) -> None:
    torch.manual_seed(0)
    block, x = TwoLayers(), torch.randn(16, 32, requires_grad=True)
    with Count() as count:
        out, pending = run_block(policy, block, x, None, None, BlockContext("space"))
        (out if pending is None else out + pending.y).square().sum().backward()
    assert count.ran["_scaled_mm"] == products
    assert x.grad is not None and x.grad.abs().max() > 0


class OneLayer(nn.Module):
    hidden = 64

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, *others: Any) -> tuple[Tensor, Pending]:
        return x, Pending(self.layer(x).sin(), torch.ones(1, 8), None)


@pytest.mark.parametrize("policy", POLICIES)
def test_parameters_learn_where_the_input_does_not(policy: str) -> None:
    """The first block trained behind frozen embedders: torch's older checkpoint leaves it without gradients."""
    torch.manual_seed(0)
    block, x = OneLayer(), torch.randn(2, 8)
    want = torch.autograd.grad((x + block.layer(x).sin()).square().sum(), block.layer.weight)[0]
    out, pending = run_block(policy, block, x, None, None, BlockContext("space"))
    (out if pending is None else out + pending.y).square().sum().backward()
    assert block.layer.weight.grad is not None and torch.allclose(block.layer.weight.grad, want) and want.any()
