"""The families of models that a run can train, by the names saved in checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.models.adapter import Adapter
from latte_fast.models.config import ModelConfig
from latte_fast.models.flexdit.adapter import FlexLatteAdapter
from latte_fast.models.flexdit.from_dense import is_flex
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.models.latte.published import config_of
from latte_fast.models.latte_t2v.adapter import LatteT2VAdapter
from latte_fast.models.latte_t2v.model import LatteT2V

_ALL: tuple[type[Adapter], ...] = (LatteAdapter, FlexLatteAdapter, LatteT2VAdapter)
FAMILIES: dict[str, type[Adapter]] = {family.name: family for family in _ALL}
# the first lies in a text-to-video model's folder, the second in a pipeline's
MODEL_FOLDER = ("config.json", "model_index.json")


def family_for(captioned: bool, model: ModelConfig | None = None) -> type[Adapter]:
    """Returns the family for clips with captions, or for clips with classes or no labels and this model."""
    if captioned:
        return LatteT2VAdapter
    return LatteAdapter if model is None or model.layout is None else FlexLatteAdapter


def adapter_of_file(state: dict[str, Tensor], source: str) -> Adapter:
    """Returns the adapter of a file of upstream's keys; `source` names the file in errors."""
    if is_flex(state):
        return FlexLatteAdapter.of_file(state, source)
    return LatteAdapter(config_of(state, source))


def is_model_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in MODEL_FOLDER)


def open_model_folder(path: Path, dtype: torch.dtype | None = None) -> tuple[nn.Module, Adapter]:
    """Loads a folder in diffusers' layout; returns the model in eval mode and its adapter."""
    model = LatteT2V.from_pretrained(path, dtype=dtype)
    return model, LatteT2VAdapter(model.config)


def adapter_of(model: nn.Module) -> Adapter:
    """Returns the adapter of an existing model, found by the type of its configuration."""
    config: Any = getattr(model, "config", None)
    for family in FAMILIES.values():
        # one family's configuration may extend another's
        if type(config) is family.config_type:
            return family(config)
    raise TypeError(f"model must be of {', '.join(FAMILIES)}, got {type(model).__name__}")
