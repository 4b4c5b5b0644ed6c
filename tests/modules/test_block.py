"""What a block runs, counted: ops, matrix products and copies, forward and backward. Counts, never times."""

import pytest
import torch
from torch import Tensor

from latte_fast import testing
from latte_fast.modules.block import Block, Pending, Step
from tests.counting import Count, require_kernels

WIDTH, HEADS, CLIPS, FRAMES, PATCHES = 64, 2, 2, 3, 5


def block_inputs(grad: bool) -> tuple[Block, Tensor, Pending, Tensor]:
    torch.manual_seed(0)
    block = testing.refill(Block(WIDTH, HEADS, 4.0))
    shape = (CLIPS, FRAMES, PATCHES, WIDTH)
    x, y = torch.randn(shape, requires_grad=grad), torch.randn(shape, requires_grad=grad)
    gate, bias, c = torch.randn(CLIPS, WIDTH), torch.randn(WIDTH), torch.randn(CLIPS, WIDTH)
    return block, x, Pending(y, gate, bias), c  # type: ignore[return-value]


@pytest.mark.parametrize("axis", ["space", "time"])
def test_forward_runs_nine_launches(axis: str) -> None:
    require_kernels(WIDTH, HEADS)
    block, x, pending, c = block_inputs(grad=False)
    with torch.no_grad(), Count() as count:
        block(x, pending, c, Step(axis))
    assert count.ran == {
        "gate_residual_norm_modulate": 2,
        "axis_attention_qkv": 1,
        "bias_gelu": 1,
        "addmm": 2,  # adaLN and qkv
        "mm": 3,  # proj, fc1, fc2; their biases are read by the next kernel
        "clone": 1,  # fc2's bias for the next block
    }
    assert count.copies == [WIDTH]


@pytest.mark.parametrize("axis", ["space", "time"])
def test_backward_copies_no_activation(axis: str) -> None:
    require_kernels(WIDTH, HEADS)
    block, x, pending, c = block_inputs(grad=True)
    x_out, last = block(x, pending, c, Step(axis))
    grads = [torch.randn_like(x_out), torch.randn_like(last.y)]
    with Count() as count:
        torch.autograd.backward([x_out, last.y], grads)
    ran = count.ran
    assert ran["gate_residual_norm_modulate_backward"] == 2
    assert ran["axis_attention_qkv_backward"] == 1
    assert ran["bias_gelu_backward"] == 1
    assert ran["mm"] == 9  # dx and dw of four token layers, and dw of adaLN
    activation = CLIPS * FRAMES * PATCHES * WIDTH
    assert all(size < activation for size in count.copies), count.copies


def test_no_parameter_leaves_the_block() -> None:
    """FSDP frees a block's parameters after its forward: what is pending must not alias them."""
    block, x, pending, c = block_inputs(grad=False)
    x_out, last = block(x, pending, c, Step("space"))
    storages = {p.untyped_storage().data_ptr() for p in block.parameters()}
    for tensor in (x_out, *last):
        assert tensor.untyped_storage().data_ptr() not in storages


def test_direct_inference_equals_the_dispatched_one() -> None:
    """Without a dispatch mode the wide results live in borrowed buffers; the numbers are the same."""
    block, x, pending, c = block_inputs(grad=False)
    with torch.no_grad():
        direct = block(x, pending, c, Step("time"))
        with Count():
            dispatched = block(x, pending, c, Step("time"))
    assert testing.relative_error(direct[0], dispatched[0]) <= 1e-6
    assert testing.relative_error(direct[1].y, dispatched[1].y) <= 3e-6
