"""quantize: a model's linear layers in 8 bits, in place; unquantize brings the layers back as they were.

A module says by its attribute `products` which of its linear layers may have 8-bit weights, and what kind each is.
What every kind costs in memory traffic decides the default. In units of the tokens in bf16, u: the inputs of qkv and
fc1 leave the norms as 8 bits, 0.5 u written and read instead of 1 u; fc2's input leaves GELU as 8 bits, in a pass of
its own of 6 u, which halves 2 products of 4 D^2; proj's input would be read, written and read again, 2 u instead of
1 u, to halve a product of D^2 alone. So proj keeps 16 bits unless it is asked for.

By its attribute `weight_only` a module says which of its layers are read by few rows, so that their time is that of
reading their weights: of these int8 leaves the inputs alone.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast import backends
from latte_fast.modules.hooks import is_untouched
from latte_fast.modules.linear import is_plain, join8
from latte_fast.modules.linear8 import STEP, Linear8, Stored8, why_emulated
from latte_fast.modules.linear_int8 import LinearInt8
from latte_fast.quantization.report import LayerReport, QuantizeReport, relative_error, signal_to_noise
from latte_fast.quantization.rounding import Inputs, compensated, smoothing

# attributes of the modules whose layers become 8-bit, by dtype; a model has modules with one of them
DTYPES: dict[str, tuple[str, ...]] = {"fp8": ("products",), "int8": ("products", "weight_only")}
# kinds of layers by attribute, and those that become 8-bit by default
KINDS = {"products": ("qkv", "proj", "fc1", "fc2"), "weight_only": ("qkv", "proj", "fc1", "fc2", "head")}
# whose inputs an op writes that can even out channels on the way, and an input that was never seen
SMOOTHED, NOTHING = ("qkv", "fc1", "fc2"), Inputs()
DEFAULT = {"products": ("qkv", "fc1", "fc2"), "weight_only": KINDS["weight_only"]}


def quantize(
    model: nn.Module,
    dtype: str = "fp8",
    *,
    layers: Iterable[str] | None = None,
    keep: bool = True,
    calibrate: Callable[[nn.Module], object] | None = None,
    smooth: bool | None = None,
) -> QuantizeReport:
    """Gives a model's linear layers 8-bit weights and inputs, in place; for inference alone.

    A weight has a scale an output channel, an input a scale a token: the largest magnitude over 448, the most that e4m3
    holds, or of integers over 127. On a GPU the products run on 8-bit tensor cores, those of integers also on a CPU
    with VNNI or AMX; elsewhere they are emulated, exactly rounded and slowly. Of a token transformer int8 halves what
    is read for a token; its inputs and sums stay as they are.

    Args:
        model: a Latte, LatteIMG, FlexLatte or LatteT2V, or a patched model; a TokenTransformer for int8; in eval mode.
        dtype: "fp8", which is e4m3, or "int8"; for weights and inputs, of a TokenTransformer for weights alone.
        layers: kinds of layers, of qkv, proj, fc1, fc2 and, of a TokenTransformer, head; by default all of
            that, and of other models all but proj, which reads what a pass of its own has to round.
        keep: whether the 16-bit weights stay in memory, for `unquantize` and for the steps of a run that are to be in
            16 bits; the report says how much they take.
        calibrate: function that calls the model on what it will see, a sampling of a few clips, say; weights are then
            rounded so that errors on these inputs cancel, and the report has each layer's signal-to-noise ratio.
        smooth: whether the channels of an input are evened out before they are rounded, and the weight's columns take
            up the difference; needs `calibrate`. By default with int8, whose steps are all alike.

    Returns:
        What became of each layer: taken, or kept in 16 bits and why, and the error of its weight.
    """
    kinds = _check(model, dtype, layers, calibrate)
    smooth = (calibrate is not None and dtype == "int8") if smooth is None else smooth
    if smooth and calibrate is None:
        raise ValueError("quantize: smooth must be False without calibrate, which shows what the channels hold")
    report = QuantizeReport()
    seen = {} if calibrate is None else _inputs(model, kinds, calibrate, dtype)
    for owner, prefix in owners(model, DTYPES[dtype]):
        attribute = attribute_of(owner, DTYPES[dtype])
        made: dict[str, list[Linear8]] = {}
        factors = _factors(owner, prefix, seen, dtype) if smooth else {}
        for path, kind in getattr(owner, attribute).items():
            layer = submodule(owner, path)
            if layer is None:
                continue
            name = f"{prefix}.{path}".strip(".")
            reason = f"{kind} is not among the layers asked for" if kind not in kinds else None
            reason = _why_not(layer, dtype, attribute) if reason is None else reason
            if reason is not None:
                report.layers[name] = LayerReport(kind, reason)
                continue
            inputs = seen.pop(name, None)
            gram = None if inputs is None else inputs.gram
            eight: Stored8
            gain = 0.0
            if attribute == "weight_only":
                eight = LinearInt8(layer, keep)
            else:
                factor, gain = factors.get(name, (None, 0.0))
                weight = layer.weight.detach()
                if factor is not None and gram is not None:
                    weight, gram = weight / factor, gram * factor * factor[:, None]
                rounded = None if gram is None else compensated(weight, gram, dtype)
                eight = Linear8(layer, keep, rounded, dtype, factor)
                made.setdefault(kind, []).append(eight)
            replace(owner, path, eight)
            report.count(layer.weight, eight, keep)
            error = relative_error(eight.dequantized(), layer.weight)
            snr = None
            if isinstance(eight, Linear8) and inputs is not None and inputs.rows:
                snr = signal_to_noise(eight, layer, inputs.rows)
            report.layers[name] = LayerReport(kind, error=error, snr=snr, gain=gain)
        # q, k and v of separate layers become one product
        if len(made.get("qkv", ())) == 3:
            join8(made["qkv"])
    if not report.layers:
        hint = "a model of another library needs latte_fast.patch(model) first"
        other = next((name for name in DTYPES if name != dtype and any(owners(model, DTYPES[name]))), None)
        hint = hint if other is None else f"it takes {other}"
        raise ValueError(f"quantize: {type(model).__name__} has no linear layers that may be 8 bits wide; {hint}")
    on_cpu = next(iter(model.parameters())).device.type == "cpu"
    if on_cpu and any(isinstance(module, Linear8) for module in model.modules()):
        why = why_emulated(dtype)
        if why is not None:
            slow = f"the CPU emulates {dtype}, exactly rounded and slower than 16 bits"
            backends.say_once(f"quantize: {slow}: {why}", logging.WARNING)
    return report


def quantize_or_refuse(model: nn.Module, dtype: str, keep: bool = False) -> QuantizeReport:
    """Quantises a model, by default for good; raises ValueError where no layer could be, with the first's reason."""
    report = quantize(model, dtype, keep=keep)
    if not report.taken:
        kinds = DEFAULT["weight_only" if any(owners(model, ("weight_only",))) else "products"]
        name, why = next((n, w) for n, w in report.kept.items() if report.layers[n].kind in kinds)
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
    weight_only = dtype == "int8" and any(owners(model, ("weight_only",)))
    attribute = "weight_only" if weight_only else "products"
    layers = DEFAULT[attribute] if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    if not layers or set(layers) - set(KINDS[attribute]):
        known = ", ".join(KINDS[attribute])
        raise ValueError(f"quantize: layers must be some of {known}, got {', '.join(layers) or 'none'}")
    if calibrate is not None and weight_only:
        raise ValueError("quantize: calibrate must be None for int8 of tokens, whose weights are rounded to nearest")
    if model.training:
        raise ValueError("quantize: model must be in eval mode, as 8-bit layers do not train")
    if any(isinstance(module, Stored8) for module in model.modules()):
        raise ValueError("quantize: model has 8-bit layers already; latte_fast.unquantize(model) brings its own back")
    for device in {p.device for p in model.parameters()} if not weight_only else ():
        reason = why_no_products(device, dtype)
        if reason is not None:
            raise RuntimeError(f"quantize: {reason}")
    return layers


def why_no_products(device: torch.device, dtype: str = "fp8") -> str | None:
    """Returns why a device has no 8-bit products, or None."""
    if device.type != "cuda":
        return None
    got, least = torch.cuda.get_device_capability(device), (8, 9) if dtype == "fp8" else (8, 0)
    if got >= least:
        return None
    need = f"{dtype} needs a GPU of compute capability {least[0]}.{least[1]} or more"
    return f"{need}, {torch.cuda.get_device_name(device)} has {got[0]}.{got[1]}"


def owners(model: nn.Module, attributes: tuple[str, ...] = ("products",)) -> Iterator[tuple[Any, str]]:
    """Yields each module that says by one of these attributes which of its layers may be 8-bit, with its name."""
    for name, module in list(model.named_modules()):
        if attribute_of(module, attributes):
            yield module, name


def attribute_of(module: nn.Module, attributes: tuple[str, ...]) -> str:
    return next((name for name in attributes if isinstance(getattr(type(module), name, None), dict)), "")


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


def _inputs(
    model: nn.Module, layers: tuple[str, ...], calibrate: Callable[[nn.Module], object], dtype: str
) -> dict[str, Inputs]:
    """Returns what each layer that becomes 8-bit sees while `calibrate` runs, by name."""
    seen, handles = {}, []
    try:
        for owner, prefix in owners(model):
            for path, kind in owner.products.items():
                layer = submodule(owner, path)
                if layer is not None and kind in layers and _why_not(layer, dtype, "products") is None:
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


def _factors(owner: Any, prefix: str, seen: dict[str, Inputs], dtype: str) -> dict[str, tuple[Tensor | None, float]]:
    """Returns what `smoothing` gives for an owner's layers, by name; layers of one kind read one input."""
    groups: dict[str, list[str]] = {}
    for path, kind in getattr(owner, "products", {}).items():
        if kind in SMOOTHED and seen.get(f"{prefix}.{path}".strip("."), NOTHING).rows:
            groups.setdefault(kind, []).append(path)
    found = {}
    for paths in groups.values():
        names = [f"{prefix}.{path}".strip(".") for path in paths]
        weight = torch.cat([submodule(owner, path).weight.detach() for path in paths])
        found.update(dict.fromkeys(names, smoothing(weight, seen[names[0]], dtype)))
    return found


def _why_not(layer: Any, dtype: str, attribute: str) -> str | None:
    """Returns why a layer keeps its 16-bit weight, or None."""
    if type(layer) is not nn.Linear:
        return f"it is a {type(layer).__name__}, not a plain linear layer"
    if not is_untouched(layer):
        return "it has hooks or a forward of its own"
    if not is_plain(layer):
        return f"its weight is a {type(layer.weight).__name__}, sharded or stored in another form"
    if attribute == "products" and (layer.in_features % STEP or layer.out_features % STEP):
        return f"its widths must be multiples of {STEP}, got {layer.in_features} and {layer.out_features}"
    if not layer.weight.is_floating_point() or layer.weight.element_size() < 2:
        return f"its weight is {layer.weight.dtype}"
    if dtype == "fp8" and layer.weight.is_cuda and layer.weight.dtype != torch.bfloat16:
        return f"8-bit products give bf16 on a GPU, its weight is {layer.weight.dtype}"
    if not bool(layer.weight.isfinite().all()):
        return "its weight has numbers that are not finite"
    return None
