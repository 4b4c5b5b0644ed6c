"""The families of models that a run can train, by the names saved in checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.models.adapter import Adapter
from latte_fast.models.config import ModelConfig
from latte_fast.models.flexdit.adapter import FlexLatteAdapter
from latte_fast.models.flexdit.authors import from_sparsedit, is_sparsedit
from latte_fast.models.flexdit.from_dense import is_flex
from latte_fast.models.flexdit.text_adapter import FlexLatteT2VAdapter
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.models.latte.published import config_of
from latte_fast.models.latte_t2v.adapter import LatteT2VAdapter
from latte_fast.models.latte_t2v.diffusers_folder import folder_of, read_config

_ALL: tuple[type[Adapter], ...] = (LatteAdapter, FlexLatteAdapter, LatteT2VAdapter, FlexLatteT2VAdapter)
_TEXT: tuple[type[LatteT2VAdapter], ...] = (LatteT2VAdapter, FlexLatteT2VAdapter)
FAMILIES: dict[str, type[Adapter]] = {family.name: family for family in _ALL}
# the first lies in a text-to-video model's folder, the second in a pipeline's
MODEL_FOLDER = ("config.json", "model_index.json")


def family_for(captioned: bool, model: ModelConfig | None = None) -> type[Adapter]:
    """Returns the family of this model for clips with captions, or for clips with classes or no labels."""
    dense = model is None or model.layout is None
    if captioned:
        return LatteT2VAdapter if dense else FlexLatteT2VAdapter
    return LatteAdapter if dense else FlexLatteAdapter


def under_own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a file's tensors under the names that our models have: of the FlexDiT authors', blocks in depth order."""
    return from_sparsedit(state) if is_sparsedit(state) else state


def adapter_of_file(state: dict[str, Tensor], source: str) -> Adapter:
    """Returns the adapter of a file of upstream's keys; `source` names the file in errors."""
    if is_flex(state):
        return FlexLatteAdapter.of_file(state, source)
    return LatteAdapter(config_of(state, source))


def is_model_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in MODEL_FOLDER)


def open_model_folder(path: Path, dtype: torch.dtype | None = None) -> tuple[nn.Module, Adapter]:
    """Loads a folder in diffusers' layout; returns the model in eval mode and its adapter."""
    named = read_config(folder_of(path), [name for family in _TEXT for name in family.model_type.folder_classes])
    family = next(family for family in _TEXT if named["_class_name"] in family.model_type.folder_classes)
    model = family.model_type.from_pretrained(path, dtype=dtype)
    return model, family(model.config)


def adapter_of(model: nn.Module) -> Adapter:
    """Returns the adapter of an existing model, found by the type of its configuration."""
    found = adapter_by(getattr(model, "config", None))
    if found is None:
        raise TypeError(f"model must be of {', '.join(FAMILIES)}, got {type(model).__name__}")
    return found


def adapter_by(config: Any) -> Adapter | None:
    """Returns the adapter of the family that has configurations of this very type, or None."""
    # one family's configuration may extend another's
    return next((family(config) for family in FAMILIES.values() if type(config) is family.config_type), None)
