"""Files of token transformers: the authors' .ckpt, and safetensors that hold the constructor's keywords."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latte_fast.files import atomic
from latte_fast.models.checkpoint import CheckpointError, check_tensors, load_state, read_checkpoint, read_pickle
from latte_fast.models.tats.files import build as build_vqgan
from latte_fast.models.tats.files import vqgan_of
from latte_fast.models.tats.transformer import TokenTransformer
from latte_fast.models.tats.transformer_config import TransformerConfig
from latte_fast.models.tats.vqgan import VQGAN

MARK, PREFIX, FIRST_STAGE = "tok_emb.weight", "transformer.", "first_stage_model."
CONDITION_STAGE = "cond_stage_model."  # the VQGAN of sounds
_MASK = ".attn.mask"  # a buffer of the authors' layers, which the number of unmasked tokens says


class TransformerFile(NamedTuple):
    """What a file holds: the keywords, tensors of the transformer and of its VQGAN, and the numbers of others'."""

    config: TransformerConfig
    state: dict[str, Tensor]
    first_stage: dict[str, Tensor]
    foreign: dict[str, int]


def read_transformer(path: str | os.PathLike, **given: Any) -> TransformerFile:
    """Reads a .ckpt of the authors, or a safetensors file; nothing but tensors and their options is unpickled.

    Args:
        path: the file.
        given: keywords of the constructor that tensors do not show and an incomplete file does not say: n_head and
            n_unmasked.
    """
    path = Path(path)
    options: Mapping[str, Any]
    if path.suffix == ".safetensors":
        state, options = read_checkpoint(path), keywords_of(path)
    else:
        content = read_pickle(path, [argparse.Namespace])
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: must hold a dict of tensors, got {type(content).__name__}")
        state, options = content.get("state_dict", content), options_of(content)
    own = {key.removeprefix(PREFIX): x for key, x in state.items() if key.startswith(PREFIX)} or dict(state)
    own = {key: x for key, x in own.items() if not key.endswith(_MASK)}
    if MARK not in own:
        raise CheckpointError(f"{path}: must hold {PREFIX}{MARK}, as every token transformer does, got none")
    check_tensors(own, str(path))
    others = {key: x for key, x in state.items() if not key.startswith((PREFIX, FIRST_STAGE)) and key not in own}
    first = {key.removeprefix(FIRST_STAGE): x for key, x in state.items() if key.startswith(FIRST_STAGE)}
    foreign = Counter(key.split(".")[0] for key in others if not key.endswith(_MASK))
    return TransformerFile(_config(own, dict(options) | given, path), own, first, dict(foreign))


def options_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that the authors' .ckpt was trained with, those of its VQGAN among them."""
    options = content.get("hyper_parameters", {})
    options = options.get("args", options) if isinstance(options, dict) else options
    return dict(vars(options) if isinstance(options, argparse.Namespace) else options)


def is_transformer_file(path: Path) -> bool:
    """Whether a file is a safetensors file of a token transformer."""
    return path.is_file() and path.suffix == ".safetensors" and bool(keywords_of(path))


def keywords_of(path: Path) -> dict[str, Any]:
    """Returns the constructor's keywords in a safetensors file's metadata, empty where it has none."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(TransformerConfig.family)
        return {} if text is None else json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated or not a checkpoint: {error}") from error


def _config(state: Mapping[str, Tensor], given: Mapping[str, Any], path: Path) -> TransformerConfig:
    """Derives the sizes from the tensors' shapes; heads and unmasked tokens have none, so that the file names them."""
    missing = [name for name in ("pos_emb", "head.weight") if name not in state]
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} must be there, found none")
    if "n_head" not in given:
        raise CheckpointError(f"{path}: must name n_head, as a .ckpt or a converted file does, got weights only")
    codes, width = state[MARK].shape
    table = tuple(state["vtokens_pos_emb"].shape[1:4]) if "vtokens_pos_emb" in state else None
    layers = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    unmasked = int(given.get("n_unmasked") or 0)
    try:
        return TransformerConfig(codes, state["pos_emb"].shape[1], layers, given["n_head"], width, unmasked, table)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_transformer(path: str | os.PathLike, device: torch.device | str = "cpu", **given: Any) -> TokenTransformer:
    """Loads a token transformer strictly, in eval mode; `read_transformer` explains the arguments."""
    found = read_transformer(path, **given)
    model = build(found.config)
    load_state(model, found.state, str(path))
    return model.to(device).eval()


def load_first_stage(
    path: str | os.PathLike, device: torch.device | str = "cpu", part: str = FIRST_STAGE, **given: Any
) -> VQGAN:
    """Loads the VQGAN of the authors' .ckpt strictly, in eval mode.

    Args:
        path: .ckpt of a transformer.
        device: device of the VQGAN.
        part: what the VQGAN's keys begin with; `CONDITION_STAGE` for that of sounds.
        given: keywords of the VQGAN that the .ckpt does not hold: downsample, padding.
    """
    path = Path(path)
    content = read_pickle(path, [argparse.Namespace])
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    first = {key.removeprefix(part): x for key, x in state.items() if key.startswith(part)}
    found = vqgan_of(first, options_of(content) | given, path)
    model = build_vqgan(found.config)
    load_state(model, found.state, str(path))
    return model.to(device).eval()


def build(config: TransformerConfig) -> TokenTransformer:
    return TokenTransformer(**asdict(config))


def save_transformer(model: TokenTransformer, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Writes a .safetensors file, whole or not at all, or a .ckpt under the authors' keys, without a VQGAN.

    Args:
        model: the transformer.
        path: new file.
        dtype: data type of the written weights; by default unchanged.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".ckpt"):
        raise ValueError(f"convert: out must end in .safetensors or .ckpt for a token transformer, got {path.name}")
    state = {key: x.detach().to("cpu", dtype).contiguous() for key, x in model.state_dict().items()}
    options = asdict(model.config)
    with atomic(path) as partial:
        if path.suffix == ".safetensors":
            save_file(state, partial, metadata={"format": "pt", TransformerConfig.family: json.dumps(options)})
        else:
            held = {"state_dict": {PREFIX + key: x for key, x in state.items()}}
            torch.save(held | {"hyper_parameters": {"args": argparse.Namespace(**options)}}, partial)
