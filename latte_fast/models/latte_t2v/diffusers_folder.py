"""Reads and writes folders of LatteT2V in diffusers' and upstream's layout, and starts from a PixArt-alpha folder."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from latte_fast.files import atomic
from latte_fast.models.checkpoint import (
    CheckpointError,
    cast,
    check_floating,
    load_state,
    read_checkpoint,
    save_checkpoint,
)

T = TypeVar("T", bound=nn.Module)
PIXART_CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")
STEM = "diffusion_pytorch_model"
# diffusers 0.24 saved it with the caption projection; no model reads it
STRAY = ("caption_projection.y_embedding",)


def load_t2v(
    cls: type[T],
    config_type: type,
    classes: Sequence[str],
    folder: str | os.PathLike,
    *,
    subfolder: str | None = None,
    dtype: torch.dtype | None = None,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
    **overrides: Any,
) -> T:
    """Loads the model of folder[/subfolder]; everything is checked before any parameter is allocated.

    Args:
        cls: LatteT2V, or a model that extends it.
        config_type: dataclass of its constructor keywords.
        classes: names that the class may have in config.json.
        folder: folder with config.json and the weights, or a pipeline's folder, whose subfolder `transformer` has them.
        subfolder: name of the model's subfolder; `transformer` is found without it.
        dtype: dtype of the parameters; by default that of the file.
        torch_dtype: dtype of the parameters, by diffusers' older name.
        variant: name of the weights' variant, as in diffusion_pytorch_model.<variant>.safetensors.
        **overrides: constructor keywords that replace the config's: video_length, recompute, ...
    """
    path = folder_of(folder, subfolder)
    config = read_config(path, classes)
    known = {f.name for f in fields(config_type)}
    kwargs = {k: v for k, v in config.items() if k in known} | overrides
    state = cast(without_strays(read_weights(path, variant)), dtype or torch_dtype)
    with torch.device("meta"):
        model = cls(**kwargs)
    load_state(model, state, str(path), assign=True)
    return model.eval()


def save_t2v(model: nn.Module, name: str, folder: str | os.PathLike, config: dict[str, Any]) -> None:
    """Writes a safetensors file, then config.json with this class name; each appears whole or not at all."""
    path = Path(folder)
    if path.is_file():
        raise ValueError(f"save_pretrained: folder must not be a file, got {path}")
    path.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, path / f"{STEM}.safetensors")
    content = json.dumps({"_class_name": name} | config, indent=2, sort_keys=True) + "\n"
    with atomic(path / "config.json") as partial:
        partial.write_text(content)


def folder_of(folder: str | os.PathLike, subfolder: str | None = None) -> Path:
    """Returns the folder that holds the model: the given one, its subfolder, or a pipeline's `transformer`."""
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; models are read from local folders only")
    if subfolder is not None:
        path = path / subfolder
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder")
    elif not (path / "config.json").is_file() and (path / "transformer" / "config.json").is_file():
        path = path / "transformer"
    return path


def read_config(path: Path, classes: Iterable[str]) -> dict[str, Any]:
    """Reads a folder's config.json, whose class must be one of `classes`."""
    file = path / "config.json"
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
        raise CheckpointError(f"{path}: must hold config.json, found {found}")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from error
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name not in classes:
        raise CheckpointError(f"{file}: _class_name must be {' or '.join(classes)}, got {name!r}")
    return config


def read_weights(path: Path, variant: str | None = None) -> dict[str, Tensor]:
    """Reads a folder's state dict: one file or shards, safetensors before .bin."""
    middle = f".{variant}" if variant else ""
    for suffix in ("safetensors", "bin"):
        single = path / f"{STEM}{middle}.{suffix}"
        if single.is_file():
            return read_checkpoint(single)
        index = path / f"{STEM}.{suffix}.index{middle}.json"
        if index.is_file():
            return _read_shards(index)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:6])
    raise CheckpointError(f"{path}: must hold {STEM}{middle}.safetensors or .bin, or an index of shards, found {found}")


def without_strays(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict without the tensors that older versions saved and no model reads."""
    return {key: value for key, value in state.items() if key not in STRAY}


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: must be JSON with a weight_map: {error}") from error
    names = sorted(set(places.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index}: {len(missing)} of {len(names)} shards are missing, the first {missing[0]}")
    state: dict[str, Tensor] = {}
    for name in names:
        state |= read_checkpoint(index.parent / name)
    absent = [key for key in places if key not in state]
    if absent:
        raise CheckpointError(f"{index}: {len(absent)} tensors are in no shard, the first {absent[0]}")
    return state


@dataclass
class StartReport:
    """Names of the tensors that were loaded, that kept their initialisation, and that the model does not have."""

    loaded: list[str]
    fresh: list[str]
    unused: list[str]

    def __str__(self) -> str:
        def some(names: list[str]) -> str:
            kinds = sorted({".".join(n.split(".")[:1]) for n in names})
            return f"{len(names)} tensors" + (f" ({', '.join(kinds)})" if kinds else "")

        return f"taken {some(self.loaded)}\nleft as they were {some(self.fresh)}\nnot this model's {some(self.unused)}"


def start_from_pixart(
    model: nn.Module, folder: str | os.PathLike, subfolder: str | None = None, variant: str | None = None
) -> StartReport:
    """Loads space blocks, embedders and head from a PixArt-alpha folder; time blocks stay as they are.

    A tensor of the same name but another shape raises before anything is loaded.

    Args:
        model: LatteT2V to load into.
        folder: folder with config.json and the weights, or a pipeline's folder, whose subfolder `transformer` has them.
        subfolder: name of the model's subfolder; `transformer` is found without it.
        variant: name of the weights' variant, as in diffusion_pytorch_model.<variant>.safetensors.
    """
    path = folder_of(folder, subfolder)
    read_config(path, PIXART_CLASSES)
    state = read_weights(path, variant)
    own = model.state_dict()
    check_floating(own, state, str(path))
    wrong = [k for k in state if k in own and own[k].shape != state[k].shape]
    if wrong:
        want, found = tuple(own[wrong[0]].shape), tuple(state[wrong[0]].shape)
        raise CheckpointError(f"{path}: {wrong[0]} must have shape {want}, found {found} ({len(wrong)} such keys)")
    loaded = [k for k in own if k in state]
    if not any(k.startswith("transformer_blocks.") for k in loaded):
        raise CheckpointError(f"{path}: holds no transformer_blocks; is it a PixArt-alpha transformer?")
    model.load_state_dict(own | {k: state[k].to(own[k]) for k in loaded})
    return StartReport(loaded, [k for k in own if k not in state], [k for k in state if k not in own])
