"""What a block runs, counted, never timed: ops, matrix products and copies; and layers in the places of its own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from latte_fast import testing
from latte_fast.models.latte.block import Block, BlockContext
from latte_fast.models.latte_t2v.block import BlockContextT2V, BlockT2V, Text
from latte_fast.modules.linear import share_storage
from latte_fast.modules.residual import Pending, resolve
from tests.helpers.counting import Count, require_kernels

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
        block(x, pending, c, BlockContext(axis))
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
    x_out, last = block(x, pending, c, BlockContext(axis))
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
    x_out, last = block(x, pending, c, BlockContext("space"))
    storages = {p.untyped_storage().data_ptr() for p in block.parameters()}
    for tensor in (x_out, *last):
        assert tensor.untyped_storage().data_ptr() not in storages


def test_direct_inference_equals_the_dispatched_one() -> None:
    """Without a dispatch mode the wide results live in borrowed buffers; the numbers are the same."""
    block, x, pending, c = block_inputs(grad=False)
    with torch.no_grad():
        direct = block(x, pending, c, BlockContext("time"))
        with Count():
            dispatched = block(x, pending, c, BlockContext("time"))
    assert testing.relative_error(direct[0], dispatched[0]) <= 1e-6
    assert testing.relative_error(direct[1].y, dispatched[1].y) <= 3e-6


class Doubled(nn.Linear):
    """What an adapter puts in a layer's place: the layer's own parameters, another result."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


LAYERS = [("one", name) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
LAYERS += [(order, f"attn{which}.{name}") for order in ("sequential", "parallel") for which in ("", "_time")
           for name in ("qkv", "proj")]  # fmt: skip


def replaced(block: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    """A copy with a layer replaced, and one whose layer gives the same by its parameters."""
    other, twin = copy.deepcopy(block), copy.deepcopy(block)
    other.get_submodule(name).__class__ = Doubled
    for p in twin.get_submodule(name).parameters():
        p.mul_(2)
    return other, twin


@torch.no_grad()
@pytest.mark.parametrize(("order", "name"), LAYERS)
@pytest.mark.parametrize("images", [0, 1])
def test_a_layer_in_anothers_place_is_called(order: str, name: str, images: int) -> None:
    """Each alone: a pair of layers that is read at once must not be read past one that is not plain."""
    torch.manual_seed(0)
    block = testing.refill(Block(WIDTH, HEADS, 4.0, order)).double()
    x, c = torch.randn(CLIPS, FRAMES, PATCHES, WIDTH).double(), torch.randn(CLIPS, WIDTH).double()
    step = BlockContext("space" if order == "one" else "both", images=images)
    plain, got, want = (resolve(*b(x, None, c, step)) for b in (block, *replaced(block, name)))
    assert testing.relative_error(got, want) <= 1e-12 and testing.relative_error(plain, want) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["attn1.to_q", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k",
                                  "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"])  # fmt: skip
def test_a_layer_of_text_to_video_in_anothers_place_is_called(name: str) -> None:
    torch.manual_seed(0)
    block = testing.refill(BlockT2V(WIDTH, HEADS, True, 1e-6, True)).double()
    share_storage((block.attn1.to_q, block.attn1.to_k, block.attn1.to_v))
    x, t = torch.randn(CLIPS, FRAMES, PATCHES, WIDTH).double(), torch.randn(CLIPS, 6, WIDTH).double()
    text = Text(torch.randn(CLIPS, 4, WIDTH).double(), None)
    step = BlockContextT2V("space", text)
    plain, got, want = (resolve(*b(x, None, t, step)) for b in (block, *replaced(block, name)))
    assert testing.relative_error(got, want) <= 1e-12 and testing.relative_error(plain, want) > 1e-3
