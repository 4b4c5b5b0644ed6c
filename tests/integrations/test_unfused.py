"""Offloaded and quantised weights of text-to-video models: they run, unfused where they must be, and are reported."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast import patch, testing, unpatch
from latte_fast.models.latte_t2v.model import LatteT2V
from tests.helpers.lora import Lora
from tests.helpers.pipelines import SMALL, transformer
from tests.helpers.suite.kinds import Kind, Missing, call, reference
from tests.helpers.suite.weights import offloads, with_bitsandbytes, with_torchao

SPACE, TIME = "transformer_blocks.1", "temporal_transformer_blocks.0"


class Brought:
    """accelerate's hook that brings all weights inside a module for its call, and takes them away after it."""

    offload = place_submodules = True

    def __init__(self, module: nn.Module):
        held = {(m, name): p for m in module.modules() for name, p in m._parameters.items() if p is not None}
        away = {key: nn.Parameter(p.to("meta")) for key, p in held.items()}
        module._hf_hook, module._old_forward = self, module.forward  # type: ignore[assignment]

        def place(weights: dict) -> None:
            for (m, name), p in weights.items():
                m._parameters[name] = p

        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            place(held)
            out = module._old_forward(*args, **kwargs)
            place(away)
            return out

        place(away)
        module.forward = functools.partial(forward, module)


class Linear4bit(nn.Module):
    """A layer whose weight is packed to whole bytes in one column, as bitsandbytes packs 4 bits."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        scale = layer.weight.detach().abs().max() / 7
        values = ((layer.weight.detach() / scale).round() + 7).to(torch.uint8).flatten()
        self.weight = nn.Parameter((values[::2] * 16 + values[1::2])[:, None], requires_grad=False)
        self.scale, self.bias, self.shape = scale, layer.bias, layer.weight.shape
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.weight // 16, self.weight % 16
        values = torch.cat([high, low], dim=1).flatten().view(self.shape)
        return F.linear(x, (values.to(x.dtype) - 7) * self.scale, self.bias)


class Int8Tensor(Tensor):
    """A weight of a class of its own, as torchao puts one into an nn.Linear."""

    @staticmethod
    def __new__(cls, weight: Tensor) -> "Int8Tensor":
        return Tensor._make_subclass(cls, (weight * 128).round() / 128)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs or {})
        return out.as_subclass(cls) if func is Tensor.detach else out


def in_4_bits(model: nn.Module, *names: str) -> None:
    for name in names:
        above, last = name.rsplit(".", 1)
        setattr(model.get_submodule(above), last, Linear4bit(model.get_submodule(name)))  # type: ignore[arg-type]


def spoil(model: nn.Module) -> None:
    """Changes a layer in each of several ways."""
    in_4_bits(model, f"{SPACE}.attn1.to_q", f"{SPACE}.attn1.to_k", f"{SPACE}.ff.net.0.proj", f"{SPACE}.attn2.to_k")
    part = model.get_submodule(f"{SPACE}.ff")
    part.net[2].weight = nn.Parameter(Int8Tensor(part.net[2].weight.data), requires_grad=False)
    time = model.get_submodule(f"{TIME}.attn1")
    time.to_out[0] = Lora(time.to_out[0])
    time.to_v.register_forward_hook(lambda *args: None)


REPORT = {
    f"{SPACE}.attn1": "its layers are called one by one: to_q, to_k (a Linear4bit)",
    f"{SPACE}.attn2": "its layers are called one by one: to_k (a Linear4bit)",
    f"{SPACE}.ff": "its layers are called one by one: net.0.proj (a Linear4bit); net.2 (its weight is a Int8Tensor)",
    f"{TIME}.attn1": "its layers are called one by one: to_out.0 (a Lora); to_v (hooks)",
}


@pytest.mark.parametrize("order", ["spoil, patch", "patch, spoil", "ours"])
@torch.no_grad()
def test_the_report_names_the_layers_that_are_called(order: str) -> None:
    theirs = transformer()
    spoil(theirs)
    want = call(theirs)
    assert (want - call(transformer())).abs().max() > 1e-3 * want.abs().max()
    model = theirs if order == "spoil, patch" else Kind("ours" if order == "ours" else "patched").model()
    if order != "spoil, patch":
        spoil(model)
    report = patch(model)
    already = {} if order == "spoil, patch" else {"": "already fast"}
    assert report.kept == already | REPORT
    assert testing.relative_error(call(model), want) <= 3e-6


def test_the_report_names_equal_reasons_once() -> None:
    theirs = transformer()
    in_4_bits(theirs, *(f"transformer_blocks.{i}.attn1.to_{x}" for i in range(2) for x in "qkv"))
    said = str(patch(theirs)).splitlines()
    assert len(said) == 2 and said[1].startswith("  transformer_blocks.0.attn1 and 1 more kept: its layers")


@pytest.mark.parametrize("cls", ["ours", "LatteT2V"])
def test_a_plain_model_reports_nothing_but_that_it_is_fast(cls: str) -> None:
    model = LatteT2V(**SMALL) if cls == "LatteT2V" else Kind("ours").model()
    assert patch(model).kept == {"": "already fast"}


def test_recompute_knows_the_width_of_packed_weights() -> None:
    model = Kind("ours").model()
    block = model.transformer_blocks[1]
    width = block.hidden
    in_4_bits(model, f"{SPACE}.ff.net.0.proj")
    assert block.hidden == width == 4 * 72


@pytest.mark.parametrize("part", ["attn1", "attn2", "ff"])
@pytest.mark.parametrize("order", ["hook, patch", "patch, hook", "ours"])
@torch.no_grad()
def test_a_part_whose_weights_come_at_once_is_called(order: str, part: str) -> None:
    model = transformer() if order == "hook, patch" else Kind("ours" if order == "ours" else "patched").model()
    want = call(reference())
    Brought(model.get_submodule(f"{SPACE}.{part}"))
    report = patch(model)
    assert report.kept[f"{SPACE}.{part}"] == "it is called as a module, for hooks"
    for _ in range(2):
        assert testing.relative_error(call(model), want) <= 3e-6
    if order != "ours":
        unpatch(model)
        assert testing.relative_error(call(model), want) <= 3e-6


@pytest.mark.parametrize("part", ["pos_embed", "adaln_single.emb", "caption_projection", f"{SPACE}.ff.net.0"])
@torch.no_grad()
def test_weights_that_come_with_what_is_not_called_are_refused(part: str) -> None:
    """By patch, and by a forward of what was fast before; a block's come, as it is called."""
    why = f"{part} has a hook that brings the weights of all layers inside it"
    theirs, ours = transformer(), Kind("ours").model()
    for model in (theirs, ours):
        call(model)
        Brought(model.get_submodule(part))
    report = patch(theirs)
    assert not report.swapped and why in report.kept[""]
    with pytest.raises(ValueError, match=why.replace(".", r"\.")):
        call(ours)
    block = Kind("patched").model()
    Brought(block.transformer_blocks[0])
    assert testing.relative_error(call(block), call(reference())) <= 3e-6


def made(apply: Any) -> None:
    try:
        apply()
    except Missing as reason:
        pytest.skip(str(reason))


@torch.no_grad()
def test_patched_and_unpatched_while_accelerate_offloads() -> None:
    found: dict[str, Any] = {}
    made(lambda: found.update(offloads()))
    want = call(reference())
    for name, offload in found.items():
        model = transformer()
        offload(model)
        assert patch(model).swapped, name
        assert testing.relative_error(call(model), want) <= 3e-6, name
        unpatch(model)
        assert testing.relative_error(call(model), want) <= 3e-6, name


@pytest.mark.parametrize("quantise", [with_torchao, with_bitsandbytes], ids=lambda f: f.__name__)
def test_adapters_train_on_quantised_weights(quantise: Any) -> None:
    """The gradients of a LoRA on 4 or 8 bits are those of diffusers' class with the same."""
    from tests.helpers.suite.training import adapted

    found = {}
    for kind in ("theirs", "ours", "patched"):
        model = Kind(kind).model()

        def prepare(model: Any = model) -> None:
            quantise(model)
            adapted(model, 1.0)

        made(prepare)
        out = call(model.train())
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5)))
        found[kind] = {name: p.grad.clone() for name, p in model.named_parameters() if "lora" in name}
    largest = max(g.abs().max() for g in found["theirs"].values())
    assert len(found["theirs"]) > 20 and largest > 0
    for kind in ("ours", "patched"):
        assert all((found[kind][k] - g).abs().max() <= 3e-6 * largest for k, g in found["theirs"].items())
