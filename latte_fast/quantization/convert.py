"""quantize: a model's linear layers in 8 bits, in place; unquantize brings the layers back as they were.

A module says by its attribute `products` which of its linear layers may have 8-bit weights, and what kind each is.
What every kind costs in memory traffic decides the default. In units of the tokens in bf16, u: the inputs of qkv and
fc1 leave the norms as 8 bits, 0.5 u written and read instead of 1 u; fc2's input leaves GELU as 8 bits, in a pass of
its own of 6 u, which halves 2 products of 4 D^2; proj's input would be read, written and read again, 2 u instead of
1 u, to halve a product of D^2 alone. So proj keeps 16 bits unless it is asked for.

By its attribute `weight_only` a module says which of its layers are read by few rows, so that their time is that of
reading their weights: int8 is for these, and leaves inputs alone.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from latte_fast import backends
from latte_fast.modules.hooks import is_untouched
from latte_fast.modules.linear import is_plain, join8
from latte_fast.modules.linear8 import STEP, Linear8, Stored8
from latte_fast.modules.linear_int8 import LinearInt8
from latte_fast.quantization.report import LayerReport, QuantizeReport, relative_error, signal_to_noise
from latte_fast.quantization.rounding import Inputs, compensated

# attribute of the modules whose layers become 8-bit, by dtype
DTYPES = {"fp8": "products", "int8": "weight_only"}
KINDS = {"fp8": ("qkv", "proj", "fc1", "fc2"), "int8": ("qkv", "proj", "fc1", "fc2", "head")}
DEFAULT = {"fp8": ("qkv", "fc1", "fc2"), "int8": KINDS["int8"]}


def quantize(
    model: nn.Module,
    dtype: str = "fp8",
    *,
    layers: Iterable[str] | None = None,
    keep: bool = True,
    calibrate: Callable[[nn.Module], object] | None = None,
) -> QuantizeReport:
    """Gives a model's linear layers 8-bit weights, and with fp8 inputs too, in place; for inference alone.

    A weight has a scale an output channel, an input of fp8 a scale a token: the largest magnitude over 448, the most
    that e4m3 holds. On a GPU the products run on 8-bit tensor cores; on the CPU they are emulated, exactly rounded and
    slowly. int8 halves what a token transformer reads for a token; its inputs and sums stay as they are.

    Args:
        model: a Latte, LatteIMG, FlexLatte or LatteT2V, or a patched model, for fp8; a TokenTransformer for int8; in
            eval mode.
        dtype: "fp8", which is e4m3 for weights and inputs; or "int8", for weights alone.
        layers: kinds of layers, of qkv, proj, fc1, fc2 and, of a TokenTransformer, head; by default all, with fp8 all
            but proj, which reads what a pass of its own has to round.
        keep: whether the 16-bit weights stay in memory, for `unquantize` and for the steps of a run that are to be in
            16 bits; the report says how much they take.
        calibrate: function that calls the model on what it will see, a sampling of a few clips, say; weights of fp8 are
            then rounded so that errors on these inputs cancel, and the report has each layer's signal-to-noise ratio.

    Returns:
        What became of each layer: taken, or kept in 16 bits and why, and the error of its weight.
    """
    layers = _check(model, dtype, layers, calibrate)
    report = QuantizeReport()
    seen = {} if calibrate is None else _inputs(model, layers, calibrate)
    for owner, prefix in owners(model, dtype):
        made: dict[str, list[Linear8]] = {}
        for path, kind in getattr(owner, DTYPES[dtype]).items():
            layer = submodule(owner, path)
            if layer is None:
                continue
            name = f"{prefix}.{path}".strip(".")
            reason = f"{kind} is not among the layers asked for" if kind not in layers else _why_not(layer, dtype)
            if reason is not None:
                report.layers[name] = LayerReport(kind, reason)
                continue
            inputs = seen.pop(name, None)
            gram = None if inputs is None else inputs.gram
            eight: Stored8
            if dtype == "int8":
                eight = LinearInt8(layer, keep)
            else:
                eight = Linear8(layer, keep, None if gram is None else compensated(layer.weight.detach(), gram))
                made.setdefault(kind, []).append(eight)
            replace(owner, path, eight)
            report.count(layer.weight, eight, keep)
            error = relative_error(eight.weight.float() * eight.weight_scale[:, None], layer.weight)
            snr = None
            if isinstance(eight, Linear8) and inputs is not None and inputs.rows:
                snr = signal_to_noise(eight, layer, inputs.rows)
            report.layers[name] = LayerReport(kind, error=error, snr=snr)
        # q, k and v of separate layers become one product
        if len(made.get("qkv", ())) == 3:
            join8(made["qkv"])
    if not report.layers:
        hint = "a model of another library needs latte_fast.patch(model) first"
        other = next((name for name in DTYPES if name != dtype and any(owners(model, name))), None)
        hint = hint if other is None else f"it takes {other}"
        what = "linear layers that may be 8 bits wide" if dtype == "fp8" else "linear layers for weights of int8"
        raise ValueError(f"quantize: {type(model).__name__} has no {what}; {hint}")
    device = next(iter(model.parameters())).device
    if device.type == "cpu" and report.taken and dtype == "fp8":
        backends.say_once("quantize: the CPU emulates fp8: exactly rounded, slower than 16 bits", logging.WARNING)
    return report


def quantize_or_refuse(model: nn.Module, dtype: str, keep: bool = False) -> QuantizeReport:
    """Quantises a model, by default for good; raises ValueError where no layer could be, with the first's reason."""
    report = quantize(model, dtype, keep=keep)
    if not report.taken:
        name, why = next((n, w) for n, w in report.kept.items() if report.layers[n].kind in DEFAULT[dtype])
        raise ValueError(f"quantize: no layer can have 8 bits; {name}: {why}")
    return report


def unquantize(model: nn.Module) -> None:
    """Puts the layers that quantize replaced back, bit for bit as they were."""
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Stored8)]
    if not found:
        raise ValueError("unquantize: model has no 8-bit layers")
    lost = [name for name, layer in found if layer.before is None]
    if lost:
        raise ValueError(f"unquantize: the 16-bit weights of {lost[0]} were not kept; load the model again")
    for name, layer in found:
        before = layer.before
        assert before is not None
        before.train(layer.training)
        replace(model, name, before)


def _check(
    model: Any, dtype: str, layers: Iterable[str] | None, calibrate: Callable[[nn.Module], object] | None
) -> tuple[str, ...]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"quantize: model must be a module, got {type(model).__name__}")
    if dtype not in DTYPES:
        raise ValueError(f"quantize: dtype must be one of {', '.join(DTYPES)}, got {dtype!r:.40}")
    layers = DEFAULT[dtype] if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    if not layers or set(layers) - set(KINDS[dtype]):
        known = ", ".join(KINDS[dtype])
        raise ValueError(f"quantize: layers must be some of {known}, got {', '.join(layers) or 'none'}")
    if calibrate is not None and dtype != "fp8":
        raise ValueError(f"quantize: calibrate must be None for {dtype}, whose weights are rounded to nearest")
    if model.training:
        raise ValueError("quantize: model must be in eval mode, as 8-bit layers do not train")
    if any(isinstance(module, Stored8) for module in model.modules()):
        raise ValueError("quantize: model has 8-bit layers already; latte_fast.unquantize(model) brings its own back")
    for device in {p.device for p in model.parameters()} if dtype == "fp8" else ():
        reason = why_not_fp8(device)
        if reason is not None:
            raise RuntimeError(f"quantize: {reason}")
    return layers


def why_not_fp8(device: torch.device) -> str | None:
    """Returns why a device has no 8-bit products, or None."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= (8, 9):
        return None
    return (
        f"fp8 needs a GPU of compute capability 8.9 or more, {torch.cuda.get_device_name(device)} has {major}.{minor}"
    )


def owners(model: nn.Module, dtype: str = "fp8") -> Iterator[tuple[Any, str]]:
    """Yields each module that says which of its layers may have weights of a dtype, with its name."""
    for name, module in list(model.named_modules()):
        if isinstance(getattr(type(module), DTYPES[dtype], None), dict):
            yield module, name


def submodule(owner: nn.Module, path: str) -> Any:
    """Returns the module at a path, or None where a part of it is missing, as cross-attention in time blocks."""
    module: Any = owner
    for part in path.split("."):
        module = module._modules.get(part)
        if module is None:
            return None
    return module


def replace(owner: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    owner.get_submodule(parent)._modules[name] = layer


def _inputs(model: nn.Module, layers: tuple[str, ...], calibrate: Callable[[nn.Module], object]) -> dict[str, Inputs]:
    """Returns what each layer that becomes 8-bit sees while `calibrate` runs, by name."""
    seen, handles = {}, []
    try:
        for owner, prefix in owners(model):
            for path, kind in owner.products.items():
                layer = submodule(owner, path)
                if layer is not None and kind in layers and _why_not(layer, "fp8") is None:
                    inputs = seen[f"{prefix}.{path}".strip(".")] = Inputs()
                    handles.append(layer.register_forward_pre_hook(inputs))
        with torch.no_grad():
            calibrate(model)
    finally:
        for handle in handles:
            handle.remove()
    if seen and all(inputs.gram is None for inputs in seen.values()):
        raise ValueError("quantize: calibrate must call the model, whose layers saw nothing")
    return seen


def _why_not(layer: Any, dtype: str) -> str | None:
    """Returns why a layer keeps its 16-bit weight, or None."""
    if type(layer) is not nn.Linear:
        return f"it is a {type(layer).__name__}, not a plain linear layer"
    if not is_untouched(layer):
        return "it has hooks or a forward of its own"
    if not is_plain(layer):
        return f"its weight is a {type(layer.weight).__name__}, sharded or stored in another form"
    if dtype == "fp8" and (layer.in_features % STEP or layer.out_features % STEP):
        return f"its widths must be multiples of {STEP}, got {layer.in_features} and {layer.out_features}"
    if not layer.weight.is_floating_point() or layer.weight.element_size() < 2:
        return f"its weight is {layer.weight.dtype}"
    if dtype == "fp8" and layer.weight.is_cuda and layer.weight.dtype != torch.bfloat16:
        return f"8-bit products give bf16 on a GPU, its weight is {layer.weight.dtype}"
    if not bool(layer.weight.isfinite().all()):
        return "its weight has numbers that are not finite"
    return None
