"""The text's keys and values are computed once per prompt, and again as soon as anything they depend on changes."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from latte_fast import LatteT2V
from tests.helpers.lora import Lora
from tests.helpers.t2v import SMALL, inputs


class Products(TorchDispatchMode):
    """Counts matrix products over the text's 2 x 7 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        product = func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        self.count += product and any(isinstance(a, Tensor) and a.shape[:1] == (14,) for a in args)
        return func(*args, **kwargs or {})


ONCE = 2 + 2 * SMALL["num_layers"]  # the caption's two layers, keys and values of each space block


@pytest.fixture
def model() -> LatteT2V:
    torch.manual_seed(0)
    return LatteT2V(**SMALL).eval()


def products(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    with Products() as seen:
        model(*args, **kwargs)
    return seen.count


@torch.no_grad()
def test_layers_without_a_bias_are_remembered() -> None:
    model = LatteT2V(**SMALL, attention_bias=False).eval()
    x, t, text, mask = inputs(3, 8, 8)
    assert [products(model, x, t, text, mask) for _ in range(2)] == [ONCE, 0]
    model.transformer_blocks[0].attn2.to_k.weight.mul_(2)
    assert products(model, x, t, text, mask) == 2


@torch.no_grad()
def test_text_runs_once_per_prompt(model: LatteT2V) -> None:
    x, _, text, mask = inputs(3, 8, 8)
    counts = [products(model, x, torch.tensor([t, t]), text, mask) for t in (900, 500, 100)]
    assert counts == [ONCE, 0, 0]
    other = text.clone()
    assert products(model, x, torch.tensor([5, 5]), other) == ONCE
    # both stay: a sampler may call with and without the condition in turn
    assert products(model, x, torch.tensor([5, 5]), text) == 0
    assert products(model, x, torch.tensor([5, 5]), other) == 0
    # and no more than two: a text no longer in use would stay in memory
    third = text.clone()
    assert [products(model, x, torch.tensor([5, 5]), each) for each in (third, other, text)] == [ONCE, 0, ONCE]


def write_text(model: LatteT2V, text: Tensor) -> None:
    text.mul_(2)


def write_key_weight(model: LatteT2V, text: Tensor) -> None:
    model.transformer_blocks[1].attn2.to_k.weight.mul_(2)


def write_value_bias(model: LatteT2V, text: Tensor) -> None:
    model.transformer_blocks[0].attn2.to_v.bias.add_(2)


def write_caption(model: LatteT2V, text: Tensor) -> None:
    model.caption_projection.linear_1.weight.mul_(2)


def load(model: LatteT2V, text: Tensor) -> None:
    model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()})


def load_by_assignment(model: LatteT2V, text: Tensor) -> None:
    model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()}, assign=True)


def replace_data(model: LatteT2V, text: Tensor) -> None:
    layer = model.transformer_blocks[0].attn2.to_k
    layer.weight.data = 2 * layer.weight.data


def lora(model: LatteT2V, text: Tensor) -> None:
    attn = model.transformer_blocks[0].attn2
    attn.to_k = Lora(attn.to_k)


def hook(model: LatteT2V, text: Tensor) -> None:
    model.transformer_blocks[0].attn2.to_k.register_forward_hook(lambda module, args, out: 2 * out)


def replaced_forward(model: LatteT2V, text: Tensor) -> None:
    layer = model.transformer_blocks[0].attn2.to_k
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def narrower(model: LatteT2V, text: Tensor) -> None:
    model.to(torch.bfloat16).to(torch.float32)


CHANGES = (write_text, write_key_weight, write_value_bias, write_caption, load, load_by_assignment, replace_data)
CHANGES += (lora, hook, replaced_forward, narrower)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@torch.no_grad()
def test_any_change_is_seen(model: LatteT2V, change: Callable) -> None:
    x, t, text, _ = inputs(3, 8, 8)
    before = model(x, t, text).sample
    assert products(model, x, t, text) == 0
    change(model, text)
    got = model(x, t, text).sample
    fresh = copy.deepcopy(model)  # a copy remembers nothing
    assert torch.equal(got, fresh(x, t, text.clone()).sample)
    assert not torch.equal(got, before)


@torch.no_grad()
def test_a_move_that_moves_nothing_keeps_the_text(model: LatteT2V) -> None:
    """As accelerate's hook of a whole model calls it before each forward."""
    x, t, text, mask = inputs(3, 8, 8)
    with torch.no_grad(), Products() as seen:
        model(x, t, text, mask)
        model.to("cpu")
        want = model(x, t, text, mask).sample
        assert seen.count == ONCE
        model.to(torch.float64).to(torch.float32)
        assert torch.equal(model(x, t, text, mask).sample, want)
        assert seen.count == 2 * ONCE
        model._apply(lambda p: p.mul_(1.5))
        assert not torch.equal(model(x, t, text, mask).sample, want)
        assert seen.count == 3 * ONCE


def test_autocast_is_seen(model: LatteT2V) -> None:
    x, t, text, _ = inputs(3, 8, 8)
    model(x, t, text)
    with torch.autocast("cpu", torch.bfloat16):
        assert products(model, x, t, text) == ONCE
        got = model(x, t, text).sample
        assert torch.equal(got, copy.deepcopy(model)(x, t, text).sample)


def test_nothing_is_kept_while_gradients_are_recorded(model: LatteT2V) -> None:
    x, t, text, _ = inputs(3, 8, 8)
    with torch.no_grad():
        model(x, t, text)
    text.requires_grad_()
    for _ in range(2):
        assert products(model, x, t, text) == ONCE
    model(x, t, text).sample.square().sum().backward()
    assert text.grad is not None and text.grad.abs().max() > 0
    assert all(p.grad is not None for p in model.parameters())


def test_inference_tensors_are_not_trusted(model: LatteT2V) -> None:
    """They carry no version, so that a write to them can't be seen."""
    with torch.inference_mode():
        x, t, text, _ = inputs(3, 8, 8)
        before = model(x, t, text).sample
        text.mul_(2)
        assert not torch.equal(model(x, t, text).sample, before)


@torch.no_grad()
def test_forget_and_pickle(model: LatteT2V) -> None:
    x, t, text, _ = inputs(3, 8, 8)
    want = model(x, t, text).sample
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x, t, text).sample, want)
    text.data.mul_(2)
    model.forget_text()
    assert not torch.equal(model(x, t, text).sample, want)
    assert all("_prompt_cache" not in key for key in model.state_dict())


def test_a_trace_reads_its_text(model: LatteT2V) -> None:
    x, _, text, mask = inputs(3, 8, 8)
    t = torch.tensor([5, 5])
    model.requires_grad_(False)
    with torch.no_grad():
        model(x, t, text, mask)
        other = torch.randn_like(text)
        traced = torch.jit.trace(lambda *args: model(*args).sample, (x, t, text, mask), check_trace=False)
        torch.testing.assert_close(traced(x, t, other, mask), model(x, t, other, mask).sample)


@pytest.mark.parametrize("how", ["constructed", "assigned", "moved"])
def test_made_in_inference_mode(model: LatteT2V, how: str) -> None:
    x, _, text, mask = inputs(3, 8, 8)
    t = torch.tensor([5, 5])
    with torch.no_grad():
        want = model(x, t, text, mask).sample
    with torch.inference_mode():
        made = LatteT2V(**SMALL).eval() if how == "constructed" else copy.deepcopy(model)
        if how == "assigned":
            made.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
        elif how == "moved":
            made = made.double().float()
        else:
            made.load_state_dict(model.state_dict())
        first, again = made(x, t, text, mask).sample, made(x, t, text, mask).sample
    assert torch.equal(first, again)
    torch.testing.assert_close(first, want)
    with torch.no_grad():
        torch.testing.assert_close(made(x, t, text, mask).sample, want)


@torch.no_grad()
def test_gathered_weights_are_read_each_time(model: LatteT2V, tmp_path: Path) -> None:
    """FSDP fills the same parameters anew before each call, under the version they had."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        x, _, text, mask = inputs(3, 8, 8)
        t = torch.tensor([5, 5])
        before = model(x, t, text, mask).sample
        model.reshard()  # a root stays gathered after its forward
        for p in model.parameters():
            p.to_local().mul_(1.5)
        got = model(x, t, text, mask).sample
        assert (got - before).abs().max() > 0.01
        assert torch.equal(got, model(x, t, text.clone(), mask).sample)
    finally:
        dist.destroy_process_group()
