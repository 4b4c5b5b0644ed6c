"""Converts weights to one file under upstream's keys, or to a folder for diffusers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_fast.locks import one_writer_of
from latte_fast.models.adapter import Adapter
from latte_fast.models.checkpoint import cast, check_keys, read_about, read_checkpoint, save_state
from latte_fast.models.families import (
    FAMILIES,
    MODEL_FOLDER,
    adapter_of_file,
    family_for,
    is_flex,
    is_model_folder,
    open_model_folder,
)
from latte_fast.models.latte.adapter import FILES, LatteAdapter
from latte_fast.models.latte.published import MARK, config_of
from latte_fast.models.latte_t2v.adapter import read_about_folder
from latte_fast.models.tats.files import save_vqgan
from latte_fast.models.tats.transformer_files import is_transformer_file, load_transformer, save_transformer
from latte_fast.runs.checkpoint import FOLDER
from latte_fast.runs.codec import is_vqgan, load_run_vqgan
from latte_fast.runs.config import CONFIG, TrainConfig
from latte_fast.runs.load import about_of, load
from latte_fast.runs.tokens import is_token_run, load_tokens
from latte_fast.runs.yaml import from_mapping, read_config


def convert(source: str | Path, out: str | Path, weights: str = "ema", dtype: torch.dtype | None = None) -> Path:
    """Writes the weights of `source` to `out` and returns it.

    A Latte with or without classes becomes a file: .safetensors, or the .pt that upstream's scripts load. A
    text-to-video model becomes a folder that diffusers and `LatteT2V.from_pretrained` read. A VQGAN and a token
    transformer become a file: .safetensors, or the .ckpt that their authors' scripts load.

    Args:
        source: a run's folder, one of its checkpoints, a file under upstream's keys, or a text-to-video model's folder.
        out: new file or folder; it must not exist, so that nothing is overwritten.
        weights: "ema", or "model" for the weights themselves, where the source has both.
        dtype: data type of the written weights; by default unchanged.
    """
    source, out = Path(source), Path(out)
    if weights not in ("ema", "model"):
        raise ValueError(f"convert: weights must be ema or model, got {weights!r}")
    with one_writer_of(out, "convert"):
        for path in (out, *([out.with_suffix(".json")] if out.suffix == ".pt" else [])):
            if path.exists():
                raise ValueError(f"convert: out must not exist, got {path}")
        _convert(source, out, weights, dtype)
    return out


def _convert(source: Path, out: Path, weights: str, dtype: torch.dtype | None) -> None:
    if source.exists() and is_vqgan(source):
        if dtype not in (None, torch.float32):
            raise ValueError(f"convert: dtype must be float32 for a VQGAN, whose codes are averages, got {dtype}")
        save_vqgan(load_run_vqgan(source, weights), out)
    elif is_transformer_file(source):
        save_transformer(load_transformer(source), out, dtype)
    elif source.is_dir() and is_token_run(source):
        save_transformer(load_tokens(source, weights).model, out, dtype)
    elif source.is_file():
        LatteAdapter.check_export(out)
        state = read_checkpoint(source, weights)
        if MARK not in state:
            rule = f"a model of classes, with {MARK}; one for text is given by its folder"
            raise ValueError(f"convert: source must hold {rule}, got {source} with {next(iter(state))}")
        about = read_about(source)
        check_file(state, source, about)
        save_state(cast(state, dtype), out, about)
    elif is_model_folder(source):
        family_for(captioned=True).check_export(out)
        model, adapter = open_model_folder(source, dtype)
        adapter.export(model, out, dtype, read_about_folder(source))
    elif not (source / CONFIG).is_file() and source.parent.name != FOLDER:
        rule = f"a run's folder with {CONFIG}, one of its checkpoints, a {' or '.join(FILES)} file, "
        rule += f"or a text-to-video model's folder with {MODEL_FOLDER[0]}"
        raise ValueError(f"convert: source must be {rule}, got {source}")
    else:
        run = source.parents[1] if source.parent.name == FOLDER else source
        config = read_config(run / CONFIG, TrainConfig)
        family_for(bool(config.data.text), config.model).check_export(out)
        trained = load(source, weights)
        trained.adapter.export(trained.model, out, dtype, about_of(trained))


def check_file(state: dict[str, Tensor], source: Path, about: dict[str, Any] | None) -> None:
    """Raises ValueError unless the file holds a whole model, by what it says of itself or by its tensors' shapes."""
    if about is not None:
        family = FAMILIES.get(about["family"], LatteAdapter)
        adapter: Adapter = family(from_mapping(family.config_type, about["model"], str(source)), about["classes"])
    elif is_flex(state):
        adapter = adapter_of_file(state, str(source))
    else:
        adapter = LatteAdapter(config_of(state, str(source), any_heads=True))
    with torch.device("meta"):
        model = adapter.build()
    check_keys(model, state, str(source))
