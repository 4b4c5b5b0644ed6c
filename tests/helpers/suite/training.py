"""Gradients and what training scripts use; attention processors, adapters, compilation."""

import copy
import tempfile
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional

from tests.helpers.suite.kinds import Kind, call, check, close, installed, need, reference


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    out = call(model)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5)))
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@check("gradients, gradient checkpointing")
def checkpointing(kind: Kind) -> None:
    model, theirs = kind.model().train(), reference().train()
    want = gradients(theirs)
    largest = max(g.abs().max().item() for g in want.values())
    for how in ("disable", "enable"):
        getattr(model, f"{how}_gradient_checkpointing")()
        assert model.is_gradient_checkpointing == (how == "enable")
        got = gradients(model)
        assert all((got[k] - want[k]).abs().max() <= 3e-6 * largest for k in want) and got.keys() == want.keys()


@check("`EMAModel` of diffusers, copies")
@torch.no_grad()
def ema(kind: Kind) -> None:
    from diffusers.training_utils import EMAModel

    model = kind.model()
    kept = EMAModel(model.parameters(), decay=0.5, model_cls=kind.cls, model_config=model.config)
    for p in model.parameters():
        p.add_(0.01)
    kept.step(model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        kept.save_pretrained(folder)
        again = EMAModel.from_pretrained(folder, kind.cls)
    assert all(torch.equal(a, b) for a, b in zip(again.shadow_params, kept.shadow_params, strict=True))
    assert torch.equal(call(copy.deepcopy(model)), call(model))


class Counted(AttnProcessor2_0):
    """The default computation, under another name."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        return super().__call__(*args, **kwargs) * 2


@check("attention processors of one's own")
@torch.no_grad()
def processors(kind: Kind) -> None:
    model, theirs, used = kind.model(), reference(), Counted()
    for each in (model, theirs):
        each.transformer_blocks[0].attn1.set_processor(used)
        each.transformer_blocks[1].attn2.set_processor(used)
        each.temporal_transformer_blocks[1].attn1.set_processor(used)
    close(call(model), call(theirs))
    assert used.calls == 6
    for block in (*model.transformer_blocks, *model.temporal_transformer_blocks):
        block.attn1.set_processor(AttnProcessor2_0())
    model.transformer_blocks[1].attn2.set_processor(AttnProcessor2_0())
    close(call(model), call(reference()))


@check("`set_attn_processor`, `fuse_qkv_projections`", shared=False)
@torch.no_grad()
def processors_of_all(kind: Kind) -> None:
    model = kind.model()
    need(__import__("diffusers").models.attention, "AttentionMixin")
    assert len(model.attn_processors) == 6
    used = Counted()
    want = call(reference())
    model.fuse_qkv_projections()
    close(call(model), want)
    model.unfuse_qkv_projections()
    model.set_attn_processor(used)
    call(model)
    assert used.calls == 6


@check("`set_attention_backend`", shared=False)
@torch.no_grad()
def attention_backend(kind: Kind) -> None:
    """All attention follows the name, or the name is refused; afterwards everything is as before."""
    model = kind.model()
    need(reference(), "set_attention_backend")
    want, attend, flash = call(reference()), functional.scaled_dot_product_attention, []

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        flash.append(torch.backends.cuda.flash_sdp_enabled())
        return attend(*args, **kwargs)

    functional.scaled_dot_product_attention = watched
    try:
        model.set_attention_backend("_native_math")
        close(call(model), want)
        assert flash == [False] * 6, "attention must not pass over the backend"
        model.reset_attention_backend()
        with pytest.raises(ValueError, match="must be one of"):
            model.set_attention_backend("magic")
    finally:
        functional.scaled_dot_product_attention = attend
        model.set_attention_backend("native")  # diffusers keeps the choice for the whole process
        model.reset_attention_backend()
    assert not [m for m in model.modules() if type(getattr(m, "processor", None)).__name__ == "DispatchedProcessor"]
    close(call(model), want)


def adapted(model: Any, scale: float) -> Any:
    """Puts a LoRA of PEFT with random weights on a model's attentions and MLPs."""
    peft = installed("peft")
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(3)
    peft.inject_adapter_in_model(config, model)
    for layer in adapted_layers(model):
        layer.set_scale("default", scale)
    return model


def adapted_layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, installed("peft").tuners.tuners_utils.BaseTunerLayer)]


def put_back(model: Any) -> None:
    """Gives a model the layers back that it had before it was adapted."""
    layers = adapted_layers(model)
    for name in [name for name, m in model.named_modules() if m in layers]:
        above, last = name.rsplit(".", 1)
        setattr(model.get_submodule(above), last, model.get_submodule(name).get_base_layer())


@check("LoRA by PEFT: scaled, fused, unfused, deleted")
@torch.no_grad()
def lora(kind: Kind) -> None:
    installed("peft")
    model = kind.model()
    before = call(model)
    for scale in (1.0, 0.3):
        model, want = adapted(kind.model(), scale), call(adapted(reference(), scale))
        assert (want - before).abs().max() > 1e-3 * before.abs().max()
        close(call(model), want)
        for layer in adapted_layers(model):
            layer.merge()
        close(call(model), want)
        for layer in adapted_layers(model):
            layer.unmerge()
        close(call(model), want)
    model = adapted(kind.model(), 1.0)
    call(model)
    put_back(model)
    assert torch.equal(call(model), before)


@check("`add_adapter`, `set_adapters`, `fuse_lora`, `save_lora_adapter`", shared=False)
@torch.no_grad()
def adapters(kind: Kind) -> None:
    peft = installed("peft")
    model = kind.model()
    before = call(model)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    model.add_adapter(config)
    whole = call(model)
    assert (whole - before).abs().max() > 1e-3
    model.fuse_lora(lora_scale=1.0)
    close(call(model), whole)
    model.unfuse_lora()
    close(call(model), whole)
    model.set_adapters("default", 0.0)
    close(call(model), before)
    model.set_adapters("default", 1.0)
    close(call(model), whole)
    with tempfile.TemporaryDirectory() as folder:
        model.save_lora_adapter(folder)
        other = kind.model()
        other.load_lora_adapter(folder, prefix=None, use_safetensors=True)
        close(call(other), whole)
    other.delete_adapters("default_0")
    assert torch.equal(call(other), before)


@check("`torch.compile`")
@torch.no_grad()
def compiled(kind: Kind) -> None:
    model = kind.model()
    torch._dynamo.reset()
    close(call(torch.compile(model, backend="eager")), call(reference()))
