"""Loads trained models from a run's folder, a checkpoint, a file under upstream's keys, or a text-to-video folder."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latte_fast.data import DataConfig
from latte_fast.models.adapter import Adapter
from latte_fast.models.checkpoint import load_checkpoint, load_state, read_about, read_checkpoint
from latte_fast.models.families import (
    FAMILIES,
    adapter_by,
    adapter_of_file,
    family_for,
    is_model_folder,
    open_model_folder,
    under_own_names,
)
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.models.latte_t2v.adapter import read_about_folder
from latte_fast.runs import checkpoint
from latte_fast.runs.config import CONFIG, TrainConfig
from latte_fast.runs.same import FREE, PLACES, difference
from latte_fast.runs.weights8 import is_8bit_file, load_8bit
from latte_fast.runs.yaml import from_mapping, read_config


@dataclass(frozen=True)
class Trained:
    """A model in eval mode, its adapter, and the configuration and step of its run."""

    model: Any
    adapter: Adapter
    config: TrainConfig
    step: int

    @property
    def classes(self) -> list[str]:
        return self.adapter.classes


def load(
    path: str | Path, weights: str = "ema", device: torch.device | str = "cpu", config: Any | None = None
) -> Trained:
    """Loads a trained model from a file or a folder; from a run's folder, its newest undamaged checkpoint.

    Args:
        path: a run's folder, runs/x/checkpoints/step-n, a .pt or .safetensors file under upstream's keys, or the folder
            of a text-to-video model.
        weights: "ema", the EMA of the weights, or "model", the weights themselves.
        device: device for the model.
        config: configuration of the model in a file that does not hold it, of the type that its family has:
            LatteConfig (variant 0 for a DiT), FlexLatteConfig, LatteT2VConfig or FlexT2VConfig.
    """
    path = Path(path)
    if weights not in ("ema", "model"):
        raise ValueError(f"load: weights must be ema or model, got {weights!r}")
    if path.is_file():
        return _load_file(path, weights, device, config)
    if config is not None:
        raise ValueError(f"load: config must be None for a folder, which holds its own, got {type(config).__name__}")
    if path.parent.name == checkpoint.FOLDER or (path / CONFIG).is_file():
        run, folder = checkpoint.whole(path)
    elif is_model_folder(path):
        model, adapter = open_model_folder(path)
        about = read_about_folder(path)
        return Trained(model.to(device), adapter, train_config(about, path), step_of(about))
    else:
        rule = f"a run's folder with {CONFIG}, a checkpoint's, a file, or a text-to-video model's folder"
        raise ValueError(f"load: path must be {rule}, got {path}")
    settings = read_config(run / CONFIG, TrainConfig)
    check_objective(settings, path)
    meta = checkpoint.read_meta(folder)
    check_config(run, settings, folder, meta)
    family = FAMILIES[meta["family"]] if "family" in meta else family_for(bool(settings.data.text), settings.model)
    shape = from_mapping(family.config_type, meta["model"], str(folder / "meta.json"))
    adapter = family(shape, meta["classes"])
    model = adapter.build(settings.images)
    load_checkpoint(model, folder / f"{weights}.safetensors")
    return Trained(model.to(device).eval(), adapter, settings, meta["step"])


def check_objective(config: TrainConfig, path: Path) -> None:
    if config.objective == "denoising":
        return
    others = {
        "vqgan": "runs.codec.load_run_vqgan and `latte-fast decode` take a VQGAN's run",
        "tokens": "runs.tokens.load_tokens and `latte-fast sample` take a token transformer's run",
    }
    rule = f"a model that denoises; {others[config.objective]}"
    raise ValueError(f"load: path must be the run of {rule}, got {path}")


def check_config(run: Path, config: TrainConfig, folder: Path, meta: dict[str, Any]) -> None:
    """Raises ValueError where a run's configuration is not that of the checkpoint; version 0.1 kept none in it."""
    if "config" not in meta:
        return
    before = from_mapping(TrainConfig, meta["config"], str(folder / "meta.json"))
    changed = difference(config, before, (*FREE, *PLACES))
    if changed is not None:
        name, was, got = changed
        rule = f"{was!r}, with which {folder.name} was trained"
        raise ValueError(f"config: {run / CONFIG}: {name} must be {rule}, got {got!r}")


def _load_file(path: Path, weights: str, device: torch.device | str, given: Any | None) -> Trained:
    about = read_about(path)
    if about is not None and is_8bit_file(about):
        return _load_8bit(path, about, device, given)
    state = under_own_names(read_checkpoint(path, weights))
    config = train_config(about, path)
    if given is not None:
        adapter = _adapter_by(given, path, about is not None)
    elif about is None:
        adapter = adapter_of_file(state, str(path))
    else:
        adapter = adapter_that_is_known(about, path)
    model = adapter.build(config.images)
    load_state(model, state, str(path))
    return Trained(model.to(device).eval(), adapter, config, step_of(about))


def adapter_that_is_known(about: dict[str, Any], path: Path) -> Adapter:
    """Returns the adapter of the model that a file says it holds."""
    family = FAMILIES.get(about["family"], LatteAdapter)
    return family(from_mapping(family.config_type, about["model"], str(path)), about["classes"])


def _load_8bit(path: Path, about: dict[str, Any], device: torch.device | str, given: Any | None) -> Trained:
    if given is not None:
        raise ValueError(f"load: config must be None for {path}, which holds its own, got {type(given).__name__}")
    config = train_config(about, path)
    check_objective(config, path)
    adapter = adapter_that_is_known(about, path)
    with torch.device("meta"):
        model = adapter.build(config.images)
    load_8bit(model.eval(), path, about)
    return Trained(model.to(device), adapter, config, step_of(about))


def _adapter_by(config: Any, path: Path, holds_one: bool) -> Adapter:
    if holds_one:
        raise ValueError(f"load: config must be None for {path}, which holds its own, got {type(config).__name__}")
    adapter = adapter_by(config)
    if adapter is None:
        known = ", ".join(family.config_type.__name__ for family in FAMILIES.values())
        raise TypeError(f"load: config must be one of {known}, got {type(config).__name__}")
    return adapter


def about_of(trained: Trained) -> dict[str, Any]:
    """Returns what a converted file says of its weights, from which they can be sampled."""
    adapter = trained.adapter
    # without the paths of this machine's data
    config = replace(trained.config, out="", data=DataConfig(), pretrained=None)
    known = {"family": adapter.name, "model": asdict(adapter.config), "classes": adapter.classes}
    plain: dict[str, Any] = json.loads(json.dumps(known | {"config": asdict(config), "step": trained.step}))
    return plain


def train_config(about: dict[str, Any] | None, path: Path) -> TrainConfig:
    return TrainConfig() if about is None else from_mapping(TrainConfig, about["config"], str(path))


def step_of(about: dict[str, Any] | None) -> int:
    return 0 if about is None else int(about.get("step", 0))
