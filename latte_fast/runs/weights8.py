"""Files of 8-bit weights: safetensors with e4m3 or int8 values under the layer's own name, their scales beside them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from latte_fast.models.checkpoint import CheckpointError, check_keys, check_tensors, save_state
from latte_fast.modules.linear import join8
from latte_fast.modules.linear8 import FP8, Linear8, Stored8, have_one_factor
from latte_fast.modules.linear_int8 import LinearInt8
from latte_fast.quantization.convert import owners, replace, submodule

# keys of what a file says of its precision
PRECISION, LAYERS = "precision", "layers_8bit"
VALUES = {"fp8": FP8, "int8": torch.int8}


def is_8bit_file(about: dict[str, Any] | None) -> bool:
    return about is not None and PRECISION in about


def save_8bit(model: nn.Module, path: Path, about: dict[str, Any]) -> None:
    """Writes a model with 8-bit layers; `about` says what the weights are, as `latte-fast convert` writes it."""
    if path.suffix != ".safetensors":
        raise ValueError(f"quantize: out must end in .safetensors, got {path.name}")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Stored8)}
    if not layers:
        raise ValueError("quantize: model must have 8-bit layers to be written as such, got none")
    precision = next(iter(layers.values())).precision
    save_state(model.state_dict(), path, about | {PRECISION: precision, LAYERS: list(layers)})


def load_8bit(model: nn.Module, path: Path, about: dict[str, Any]) -> None:
    """Loads a file of `save_8bit` into a model on the meta device, whose 16-bit weights never exist.

    The model is then on the CPU; its 8-bit layers can't be brought back to 16 bits.
    """
    layers, precision = about.get(LAYERS), about[PRECISION]
    if precision not in VALUES or not isinstance(layers, list):
        rule = f"{' or '.join(VALUES)} with a list of layers"
        raise CheckpointError(f"{path}: precision must be {rule}, got {precision!r:.40}")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or not a checkpoint: {str(error).splitlines()[0]}") from error
    _make_room(model, layers, path, precision, state)
    check_keys(model, state, str(path))
    _check_values(state, layers, path, VALUES[precision])
    model.load_state_dict(state, assign=True)
    for owner, _ in owners(model, ("products",)):
        made = [submodule(owner, place) for place, kind in owner.products.items() if kind == "qkv"]
        if len(made) == 3 and all(type(layer) is Linear8 for layer in made):
            if not have_one_factor(made):
                raise CheckpointError(f"{path}: q, k and v that read one input must have one input_factor")
            join8(made)


def _make_room(model: nn.Module, layers: Iterable[Any], path: Path, precision: str, state: dict[str, Tensor]) -> None:
    """Puts empty 8-bit layers where the file has such; CheckpointError where the model has no linear layer."""
    known = dict(model.named_modules())
    weights_alone = any(owners(model, ("weight_only",)))
    for name in layers:
        layer = known.get(name)
        if type(layer) is not nn.Linear:
            raise CheckpointError(f"{path}: not this model: 8-bit layer {name!r:.80} must be a linear layer of it")
        if weights_alone:
            replace(model, name, LinearInt8(layer, False))
            continue
        factor = torch.empty(layer.in_features, device="meta") if f"{name}.input_factor" in state else None
        replace(model, name, Linear8(layer, False, None, precision, factor))


def _check_values(state: dict[str, Tensor], layers: Iterable[str], path: Path, dtype: torch.dtype) -> None:
    """Raises CheckpointError for a value that no weight and no scale can have."""
    rest = dict(state)
    for name in layers:
        values, scale = rest.pop(f"{name}.weight"), rest.pop(f"{name}.weight_scale")
        if values.dtype != dtype:
            raise CheckpointError(f"{path}: {name}.weight must be of {str(dtype)[6:]}, found {values.dtype}")
        # NaN is e4m3's only number that is not finite: all bits but the sign set
        if dtype == FP8 and ((values.view(torch.uint8) & 0x7F) == 0x7F).any():
            raise CheckpointError(f"{path}: {name}.weight must be finite, found NaN")
        for key, numbers in (("weight_scale", scale), ("input_factor", rest.pop(f"{name}.input_factor", scale))):
            if numbers.dtype != torch.float32 or not (numbers.isfinite() & (numbers > 0)).all():
                raise CheckpointError(f"{path}: {name}.{key} must be positive, finite fp32 numbers")
    check_tensors(rest, str(path))
