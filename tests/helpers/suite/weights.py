"""Weights that are brought for the time of a call, by accelerate, and weights of fewer bits, by their libraries."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.helpers.pipelines import diffusers, pipeline, video
from tests.helpers.suite.kinds import Kind, Missing, call, check, close, installed, reference

CPU = torch.device("cpu")


def all_on(model: nn.Module, device: str) -> dict[str, str]:
    """Returns a map of devices that names every child and parameter of a model."""
    names = [name for name, _ in model.named_children() if name != "blocks"]
    return dict.fromkeys([*names, *model._parameters], device)


def offloads() -> dict[str, Callable[[Any], Any]]:
    """Returns accelerate's ways to keep weights elsewhere between calls; all of them run on the CPU here."""
    accelerate = installed("accelerate")

    def dispatch(model: Any) -> None:
        devices = all_on(model, "cpu") | {"transformer_blocks": "disk"}
        accelerate.dispatch_model(model, devices, offload_dir=tempfile.mkdtemp(), force_hooks=True)

    def preload(name: str) -> Callable[[Any], Any]:
        return lambda model: accelerate.cpu_offload(model, CPU, preload_module_classes=[name])

    return {
        "cpu_offload": lambda model: accelerate.cpu_offload(model, CPU, offload_buffers=True),
        "disk_offload": lambda model: accelerate.disk_offload(model, tempfile.mkdtemp(), CPU),
        "cpu_offload_with_hook": lambda model: accelerate.cpu_offload_with_hook(model, CPU)[1].offload(),
        "dispatch_model": dispatch,
        "attentions at once": preload("Attention"),
        "MLPs at once": preload("FeedForward"),
        "blocks at once": preload("BasicTransformerBlock"),
        "the model at once": preload("LatteTransformer3DModel"),
    }


@check("`cpu_offload`, `disk_offload`, `dispatch_model` (accelerate)")
@torch.no_grad()
def offload(kind: Kind) -> None:
    wanted = [call(reference(), seed) for seed in (0, 1)]
    for offload in offloads().values():
        model = kind.model()
        offload(model)
        for seed, want in enumerate(wanted):
            close(call(model, seed), want)
        installed("accelerate").hooks.remove_hook_from_module(model, recurse=True)
        close(call(model), wanted[0])


@check("`enable_model_cpu_offload`, `enable_sequential_cpu_offload` (accelerate)")
def offload_of_pipelines(kind: Kind) -> None:
    accelerate = installed("accelerate")
    want = video(pipeline())

    def one_by_one(pipe: Any) -> None:
        # as diffusers does; it would name the device cpu:0, from which accelerate gets no parameters back
        accelerate.cpu_offload(pipe.transformer, CPU, offload_buffers=True)

    for offload in (lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), one_by_one):
        pipe = kind.pipeline()
        offload(pipe)
        for _ in range(2):
            assert (video(pipe) - want).abs().max() <= 1e-4
        pipe.remove_all_hooks()
        assert (video(pipe) - want).abs().max() <= 1e-4


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if type(m) is nn.Linear and "blocks." in name}


def with_torchao(model: Any) -> None:
    """Rounds the weights of all linear layers to 8 bits, which become tensors of a class of torchao's."""
    torchao = installed("torchao.quantization")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())


def with_bitsandbytes(model: Any, bits: int = 4) -> None:
    """Puts bitsandbytes' layers in the place of the blocks'; diffusers asks for a GPU to do so."""
    bnb = installed("bitsandbytes").nn
    for name, layer in linear_layers(model).items():
        shape = (layer.in_features, layer.out_features, layer.bias is not None)
        if bits == 4:
            new = bnb.Linear4bit(*shape, compute_dtype=torch.float32, quant_type="nf4")
            new.weight = bnb.Params4bit(layer.weight.data.clone(), requires_grad=False, quant_type="nf4", module=new)
            new.bias = layer.bias
        else:
            new = bnb.Linear8bitLt(*shape, has_fp16_weights=False)
            new.load_state_dict(layer.state_dict())
        above, last = name.rsplit(".", 1)
        setattr(model.get_submodule(above), last, new.to("cpu"))


def same_when_quantised(kind: Kind, quantise: Callable[[Any], None]) -> None:
    """Asserts equal numbers, whether the weights are quantised before or after the model is made this kind."""
    theirs = reference()
    quantise(theirs)
    want = call(theirs)
    assert (want - call(reference())).abs().max() > 1e-5 * want.abs().max(), "nothing was rounded"
    model = kind.model()
    quantise(model)
    close(call(model), want)
    close(call(kind.finish(theirs)), want)


@check("weights of torchao: `quantize_`, `TorchAoConfig`")
@torch.no_grad()
def torchao(kind: Kind) -> None:
    same_when_quantised(kind, with_torchao)
    config = getattr(diffusers, "TorchAoConfig", None)
    if config is None:
        raise Missing(f"diffusers {diffusers.__version__} has no TorchAoConfig")
    installed("accelerate")
    try:
        how = config(installed("torchao.quantization").Int8WeightOnlyConfig())
    except ImportError:
        raise Missing(f"diffusers {diffusers.__version__} takes an older torchao than this one") from None
    with tempfile.TemporaryDirectory() as folder:
        reference().save_pretrained(folder)
        options = {"quantization_config": how, "torch_dtype": torch.float32}
        theirs = diffusers.LatteTransformer3DModel.from_pretrained(folder, **options)
        close(call(kind.load(folder, **options)), call(theirs.eval()))


@check("weights of bitsandbytes, of 4 and of 8 bits")
@torch.no_grad()
def bitsandbytes(kind: Kind) -> None:
    same_when_quantised(kind, with_bitsandbytes)
    same_when_quantised(kind, lambda model: with_bitsandbytes(model, 8))
