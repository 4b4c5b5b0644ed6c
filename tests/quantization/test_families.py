"""quantize on every family: the text model's q, k, v as one product, FlexDiT, images beside clips, replayed graphs."""

from typing import Any

import pytest
import torch
from torch import nn

import latte_fast
from latte_fast import LatteIMG, Replay, ops, testing
from latte_fast.modules.linear import joined8
from latte_fast.modules.linear8 import Linear8
from tests.helpers import t2v
from tests.helpers.flex import flex_pair
from tests.helpers.lora import Lora
from tests.helpers.played import Played
from tests.helpers.tiny_latte import KEYWORDS, refilled

WIDE = {"num_attention_heads": 2, "cross_attention_dim": 48}


def text_model() -> tuple[nn.Module, tuple]:
    model = t2v.pair(**WIDE)[1].eval()
    x, t, text, mask = t2v.inputs(3, 8, 8)
    return model, (x, t, text, mask)


def flex_model() -> tuple[nn.Module, tuple]:
    generator = torch.Generator().manual_seed(2)
    return flex_pair()[1].eval(), (torch.randn(2, 3, 4, 8, 8, generator=generator), torch.tensor([20, 900]))


def joint_model() -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    model = testing.refill(LatteIMG(**KEYWORDS | {"num_frames": 3, "extras": 1})).eval()
    return model, (torch.randn(2, 5, 4, 8, 8), torch.tensor([3, 800]))


def call(model: nn.Module, inputs: tuple) -> Any:
    if len(inputs) == 4:
        x, t, text, mask = inputs
        out = model(x, t, text, encoder_attention_mask=mask, return_dict=False)
        return out[0] if isinstance(out, tuple) else out
    return model(*inputs, use_image_num=2) if type(model) is LatteIMG else model(*inputs)


# of FlexDiT all MLPs, and the qkv of its S and D blocks, six of twelve
@torch.no_grad()
@pytest.mark.parametrize(("make", "count"), [(text_model, 20), (flex_model, 30), (joint_model, 6)])
def test_families(make: Any, count: int) -> None:
    """Near the 16-bit result, calibrated or not, and the same bits after the way back."""
    model, inputs = make()
    want = call(model, inputs)
    errors = []
    for calibrate in (None, lambda m: call(m, inputs)):
        report = latte_fast.quantize(model, calibrate=calibrate)
        assert len(report.taken) == count, str(report)
        got = call(model, inputs)
        errors.append(float((got - want).norm() / want.norm()))
        latte_fast.unquantize(model)
        assert torch.equal(call(model, inputs), want)
    assert 1e-3 < errors[0] < 0.1
    assert errors[1] < errors[0]
    assert all(layer.snr is not None and 20 < layer.snr < 60 for n, layer in report.layers.items() if not layer.kept)


@torch.no_grad()
def test_q_k_and_v_of_the_text_model_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = text_model()
    latte_fast.quantize(model)
    for moved in (model, model.to(torch.float64).to(torch.float32)):
        for block in (*moved.transformer_blocks, *moved.temporal_transformer_blocks):
            attn = block.attn1
            packed = joined8((attn.to_q, attn.to_k, attn.to_v))
            assert packed is not None and packed[0].shape == (3 * 48, 48)
    calls: list[str] = []
    op = ops.rows_fp8
    monkeypatch.setattr(ops, "rows_fp8", lambda x: (calls.append("rows"), op(x))[1])
    call(model, inputs)
    assert not calls  # norms and GELU leave all rows in 8 bits


@torch.no_grad()
def test_layers_that_are_not_adjacent_multiply_one_by_one() -> None:
    model, inputs = text_model()
    latte_fast.quantize(model)
    want = call(model, inputs)
    for block in (*model.transformer_blocks, *model.temporal_transformer_blocks):
        block.attn1.to_k.weight = block.attn1.to_k.weight.clone()
        assert joined8((block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)) is None
    torch.testing.assert_close(call(model, inputs), want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_lora_keeps_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = refilled().eval()
    model.blocks[0].mlp.fc2 = Lora(model.blocks[0].mlp.fc2)
    report = latte_fast.quantize(model)
    assert report.kept["blocks.0.mlp.fc2"] == "it is a Lora, not a plain linear layer"
    x, t = torch.randn(1, 4, 4, 8, 8), torch.tensor([5])
    eight = model(x, t)
    # put on afterwards, it gets 16-bit rows
    model.blocks[1].attn.qkv = Added(model.blocks[1].attn.qkv)
    assert not torch.equal(model(x, t), eight)


class Added(nn.Module):
    def __init__(self, base: Linear8):
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x.mean()


@torch.no_grad()
def test_replay_captures_8_bit_layers(played: Played) -> None:
    """One graph for all calls; another one where a layer is another, as after the way back."""
    model = refilled().eval()
    fast = Replay(model)
    x, t = torch.randn(2, 4, 4, 8, 8), torch.tensor([3, 500])
    before = fast(x, t)
    latte_fast.quantize(model)
    outs = [fast(x * s, t) for s in (1.0, 0.5)]
    assert torch.equal(outs[0], model(x, t)) and not torch.equal(outs[0], before)
    assert (played.captures, played.replays) == (2, 3)
    latte_fast.unquantize(model)
    assert torch.equal(fast(x, t), before) and played.captures == 3
