"""A patched text-to-video model beside what others put on it: offloading, adapters, caches, compilation, copies."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from latte_fast import patch, testing, unpatch
from tests.helpers.lora import Lora
from tests.helpers.pipelines import diffusers, pipeline, transformer, video
from tests.helpers.t2v import inputs


class Offload:
    """accelerate's hook as it stands on a module: its forward replaced, the old one kept."""

    def __init__(self, module: Any):
        self.calls = 0
        module._hf_hook, module._old_forward = self, module.forward

        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return module._old_forward(*args, **kwargs)

        module.forward = functools.partial(forward, module)


@pytest.mark.parametrize("first", ["hook", "patch"])
def test_offload_hooks_stay(first: str) -> None:
    pipe = pipeline()
    before = video(pipe)
    model = pipe.transformer
    blocks, embed = model.transformer_blocks, model.pos_embed
    # the last moves a table that the fast forward reads without calling the module
    places = (model, blocks[0], blocks[1].attn1.to_q, embed.proj, embed)
    if first == "patch":
        patch(pipe)
    hooks = [Offload(place) for place in places]
    if first == "hook":
        report = patch(pipe)
        why = "its layers are called one by one: to_q (hooks)"
        assert report.kept == {"transformer.transformer_blocks.1.attn1": why}
    assert (video(pipe) - before).abs().max() <= 1e-4
    assert all(hook.calls > 0 for hook in hooks[:4])
    unpatch(pipe)
    assert torch.equal(video(pipe), before)


@pytest.mark.parametrize("first", ["hook", "patch"])
def test_moving_hooks_of_diffusers_stay(first: str) -> None:
    """Group offloading and layerwise casting hook leaves, blocks and the model itself."""
    from diffusers.hooks import HookRegistry, ModelHook

    class Moves(ModelHook):
        calls = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple:
            self.calls += 1
            return args, kwargs

    model = transformer()
    x, t, text, _ = inputs(3, 8, 8)
    places = (model, model.transformer_blocks[0], model.transformer_blocks[1].attn1.to_q, model.pos_embed)
    # both on one module, as offloading a model that is stored in fewer bits puts them
    hooks = {(place, name): Moves() for place in places for name in ("layerwise_casting", "group_offloading")}
    with torch.no_grad():
        before = model(x, t, text).sample
        if first == "patch":
            patch(model)
        for (place, name), hook in hooks.items():
            HookRegistry.check_if_exists_or_initialize(place).register_hook(hook, name)
        if first == "hook":
            assert patch(model).swapped
        assert testing.relative_error(model(x, t, text).sample, before) <= 3e-6
        assert all(hook.calls > 0 for (place, _), hook in hooks.items() if place is not model.pos_embed)
        for place, name in hooks:
            place._diffusers_hook.remove_hook(name, recurse=False)
        assert testing.relative_error(model(x, t, text).sample, before) <= 3e-6
        unpatch(model)
        assert torch.equal(model(x, t, text).sample, before)


def test_unpatch_after_a_hook_came_and_went() -> None:
    pipe = pipeline()
    before = video(pipe)
    patch(pipe)
    for place in (pipe.transformer, pipe.transformer.transformer_blocks[0]):
        Offload(place)
        # as accelerate removes it
        place.forward = place._old_forward
        del place._hf_hook, place._old_forward
    unpatch(pipe)
    assert torch.equal(video(pipe), before)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_patched_model_is_copied_with_its_class(how: str) -> None:
    theirs = transformer()
    x, t, text, _ = inputs(3, 8, 8)
    with torch.no_grad():
        before = theirs(x, t, text).sample
        patch(theirs)
        want = theirs(x, t, text).sample
        again = pickle.loads(pickle.dumps(theirs)) if how == "pickle" else copy.deepcopy(theirs)
        assert torch.equal(again(x, t, text).sample, want)
        unpatch(again)
        assert type(again) is diffusers.LatteTransformer3DModel
        assert torch.equal(again(x, t, text).sample, before)
        assert torch.equal(theirs(x, t, text).sample, want)


@pytest.mark.parametrize(
    "stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)], ids=["wrapped", "compiled"]
)
def test_a_compiled_model_is_patched_inside(stance: Any) -> None:
    theirs = transformer(num_layers=1)
    x, t, text, _ = inputs(3, 8, 8)
    with torch.no_grad(), torch.compiler.set_stance(stance):
        want = theirs(x, t, text).sample
        wrapped = torch.compile(theirs, backend="eager")
        report = patch(wrapped)
        assert len(report.swapped) == 3 and all(name.startswith("_orig_mod") for name in report.swapped)
        assert testing.relative_error(wrapped(x, t, text).sample, want) <= 3e-6
        unpatch(wrapped)
        assert torch.equal(theirs(x, t, text).sample, want)


def test_an_adapter_on_the_patches_runs() -> None:
    """A convolution's LoRA shows the base's weight as its own."""

    class LoraConv(nn.Module):
        def __init__(self, base: nn.Conv2d):
            super().__init__()
            self.base_layer = base
            self.more = nn.Conv2d(4, base.out_channels, 2, stride=2)
            self.weight, self.bias = base.weight, base.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base_layer(x) + self.more(x)

    theirs = transformer()
    theirs.pos_embed.proj = LoraConv(theirs.pos_embed.proj)
    x, t, text, _ = inputs(3, 8, 8)
    with torch.no_grad():
        want = theirs(x, t, text).sample
        patch(theirs)
        assert testing.relative_error(theirs(x, t, text).sample, want) <= 3e-6


def test_adapters_run() -> None:
    """LoRA on any projection changes the result as it does unpatched."""
    pipe = pipeline()
    for block in pipe.transformer.transformer_blocks:
        for attn in (block.attn1, block.attn2):
            attn.to_q, attn.to_v = Lora(attn.to_q), Lora(attn.to_v)
    block.ff.net[0].proj = Lora(block.ff.net[0].proj)
    block.ff.net[2] = Lora(block.ff.net[2])
    before = video(pipe)
    report = patch(pipe)
    ends = {name.removeprefix("transformer.transformer_blocks.") for name in report.kept}
    assert ends == {"0.attn1", "0.attn2", "1.attn1", "1.attn2", "1.ff"} and "one by one" in str(report)
    assert (video(pipe) - before).abs().max() <= 1e-4
