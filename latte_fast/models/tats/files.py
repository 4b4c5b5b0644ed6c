"""Files of 3D-VQGANs: the authors' .ckpt, and safetensors that hold the constructor's keywords beside the weights."""

import argparse
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latte_fast.files import atomic
from latte_fast.models.checkpoint import CheckpointError, load_state, read_checkpoint, read_pickle, save_tensors
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.models.tats.vqgan import VQGAN

log = logging.getLogger("latte_fast.models")
MARK = "encoder.conv_first.conv.weight"
KEYWORDS = VQGANConfig.family  # entry of a safetensors file's metadata
OWN = ("encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.", "codebook.")
# buffers of training, which decide no token and no pixel
_UNSEEN = ("codebook.N", "codebook.z_avg", "num_batches_tracked")
# the authors' names of options
_THEIRS = {"norm": "norm_type", "padding": "padding_type"}


class VQGANFile(NamedTuple):
    """What a file holds: the keywords, the VQGAN's tensors, and the numbers of other networks' tensors."""

    config: VQGANConfig
    state: dict[str, Tensor]
    foreign: dict[str, int]


def read_vqgan(path: str | os.PathLike) -> VQGANFile:
    """Reads a .ckpt of the authors, or a safetensors file; nothing but tensors and their options is unpickled."""
    path = Path(path)
    given: Mapping[str, Any]
    if path.suffix == ".safetensors":
        state, given = read_checkpoint(path), keywords_of(path) or {}
    else:
        content = read_pickle(path, [argparse.Namespace])
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: must hold a dict of tensors, got {type(content).__name__}")
        state = content.get("state_dict", content)
        options = content.get("hyper_parameters", {})
        options = options.get("args", options) if isinstance(options, dict) else options
        options = vars(options) if isinstance(options, argparse.Namespace) else options
        given = _ours(options)
    return vqgan_of(state, given, path)


def _ours(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keywords that tensors do not show, from the authors' options."""
    return {name: options[key] for name in ("downsample", "padding") if (key := _THEIRS.get(name, name)) in options}


def vqgan_of(state: Mapping[str, Tensor], given: Mapping[str, Any], path: Path) -> VQGANFile:
    """Sorts the tensors of a file; `given` holds the constructor's keywords or the authors' options."""
    given = {**given, **_ours(given)}
    if MARK not in state:
        raise CheckpointError(f"{path}: must hold {MARK}, as every 3D-VQGAN does, got {next(iter(state), 'nothing')}")
    own = {key: value for key, value in state.items() if key.startswith(OWN)}
    foreign = Counter(key.split(".")[0] for key in state if not key.startswith(OWN))
    return VQGANFile(_config(own, given, path), own, dict(foreign))


def keywords_of(path: Path) -> dict[str, Any] | None:
    """Returns the constructor's keywords in a safetensors file's metadata; None in one without a VQGAN."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEYWORDS)
        return None if text is None else json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated or not a checkpoint: {error}") from error


def _config(state: Mapping[str, Tensor], given: Mapping[str, Any], path: Path) -> VQGANConfig:
    """Derives the sizes from the tensors' shapes; strides and padding have none, so that the file has to name them."""
    if "downsample" not in given:
        raise CheckpointError(
            f"{path}: must name the downsampling, as a .ckpt or a converted file does, got weights only"
        )
    if "codebook.embeddings" not in state:
        raise CheckpointError(f"{path}: codebook.embeddings must be there, found none")
    codes, width = state["codebook.embeddings"].shape
    norm = "batch" if any(key.endswith("running_mean") for key in state) else "group"
    channels = state[MARK].shape[1]
    known = {
        "n_hiddens": len(state[MARK]),
        "embedding_dim": width,
        "n_codes": codes,
        "norm": norm,
        "channels": channels,
    }
    names = {f.name for f in fields(VQGANConfig)}
    try:
        return VQGANConfig(**{k: v for k, v in given.items() if k in names} | known)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_vqgan(path: str | os.PathLike, device: torch.device | str = "cpu") -> VQGAN:
    """Loads a 3D-VQGAN strictly, in eval mode; tensors of other networks in the file are named in the log."""
    found = read_vqgan(path)
    model = build(found.config)
    load_state(model, found.state, str(path))
    if found.foreign:
        parts = ", ".join(f"{part} ({count} tensors)" for part, count in found.foreign.items())
        log.info("%s: left out, as encoding and decoding need none of it: %s", path, parts)
    return model.to(device).eval()


def build(config: VQGANConfig, restart: float = 0.0) -> VQGAN:
    return VQGAN(**asdict(config), restart=restart)


def save_vqgan(model: VQGAN, path: str | os.PathLike) -> None:
    """Writes a .safetensors file, whole or not at all, or the .ckpt that the authors' scripts load."""
    path = Path(path)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if path.suffix not in (".safetensors", ".ckpt"):
        raise ValueError(f"save_vqgan: path must end in .safetensors or .ckpt, got {path.name}")
    with atomic(path) as partial:
        if path.suffix == ".safetensors":
            save_tensors(state, partial, metadata_of(model.config))
            return
        options = asdict(model.config) | {theirs: getattr(model.config, ours) for ours, theirs in _THEIRS.items()}
        args = argparse.Namespace(**options | {"image_channels": model.config.channels})
        torch.save({"state_dict": state, "hyper_parameters": {"args": args}}, partial)


def metadata_of(config: VQGANConfig) -> dict[str, str]:
    return {"format": "pt", KEYWORDS: json.dumps(asdict(config))}


def fingerprint(model: VQGAN) -> str:
    """Returns 16 hexadecimal digits of all that decides a clip's tokens and a token's pixels."""
    held = asdict(model.config)
    if model.config.channels == 3:
        del held["channels"]  # which older fingerprints do not know
    digest = hashlib.sha256(json.dumps(held, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith(_UNSEEN):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
