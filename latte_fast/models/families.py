"""The families of models that a run can train, by the names saved in checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from latte_fast.models.adapter import Adapter
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.models.latte_t2v.adapter import LatteT2VAdapter
from latte_fast.models.latte_t2v.model import LatteT2V

FAMILIES: dict[str, type[Adapter]] = {family.name: family for family in (LatteAdapter, LatteT2VAdapter)}
# the first lies in a text-to-video model's folder, the second in a pipeline's
MODEL_FOLDER = ("config.json", "model_index.json")


def family_for(captioned: bool) -> type[Adapter]:
    """Returns the family for clips with captions, or for clips with classes or no labels."""
    return LatteT2VAdapter if captioned else LatteAdapter


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
        if isinstance(config, family.config_type):
            return family(config)
    raise TypeError(f"model must be of {', '.join(FAMILIES)}, got {type(model).__name__}")
