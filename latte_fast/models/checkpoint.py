"""Checkpoint files: reads and writes upstream's .pt and safetensors; checks every key before a model changes."""

import json
import os
import pickle
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latte_fast.files import atomic

# key of what is known of the weights in a file's metadata
ABOUT = "latte_fast"
WEIGHTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PREFIXES = ("_orig_mod.", "module.")
# their own message says what is wrong with the file
_EXPLAINED = (SafetensorError, RuntimeError, OSError, ValueError)
# bytes that are no pickle make the unpickler raise any of the others
_UNREADABLE = (*_EXPLAINED, EOFError, LookupError, TypeError, AttributeError, AssertionError, struct.error)


class CheckpointError(ValueError):
    """A file that cannot be loaded; the model is left unchanged."""


def read_checkpoint(path: str | os.PathLike, prefer: str = "ema") -> dict[str, Tensor]:
    """Reads a file's state dict: safetensors, or a .pt that is flat or holds "ema" and / or "model".

    Only tensors are ever unpickled; `_orig_mod.` and `module.` prefixes are stripped. A file without "ema" gives its
    "model" instead, but prefer="model" never gives "ema".
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
    else:
        content = read_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a dict of tensors, got {type(content).__name__}")
    holders = [name for name in (prefer, "ema", "model") if isinstance(content.get(name), dict)]
    if prefer == "model" and holders[:1] == ["ema"]:
        raise CheckpointError(f"{path}: must hold the weights themselves under 'model', got their average alone, 'ema'")
    flat: dict = content[holders[0]] if holders else content
    state = {_stripped(str(key)): value for key, value in flat.items()}
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    check_tensors({key: value for key, value in state.items() if isinstance(value, Tensor)}, str(path))
    if odd or not state:
        raise CheckpointError(
            f"{path}: must hold tensors under {prefer!r}, 'model' or flat, got other values at {odd[:3]}"
        )
    return state


def read_pickle(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Reads a .pt or .ckpt; nothing is unpickled but tensors, plain values, and objects of the `allowed` types."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text advises weights_only=False, which would run what the file holds
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f": {found[1]}" if found else ""
        raise CheckpointError(f"{path}: holds more than tensors, or is damaged, and was not unpickled{what}") from None
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [""])[0] if isinstance(error, _EXPLAINED) else ""
    return CheckpointError(f"{path}: truncated or not a checkpoint: {reason or 'no tensors found'}")


def check_tensors(state: dict[str, Tensor], source: str) -> None:
    """Raises CheckpointError naming the first tensor that can be no weight: of another kind, or not finite."""
    for key, value in state.items():
        if not value.is_floating_point() and not value.is_complex() and not value.is_quantized:
            continue  # a count; a model that wants a weight there refuses it
        if value.dtype not in WEIGHTS:
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in WEIGHTS)
            found = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(f"{source}: {key} must be of {kinds}, found {found}")
        if value.layout != torch.strided or value.is_meta:
            found = "a meta tensor without values" if value.is_meta else f"a tensor of layout {value.layout}"
            raise CheckpointError(f"{source}: {key} must be dense, found {found}")
        if not value.isfinite().all():
            raise CheckpointError(f"{source}: {key} must be finite, found NaN or infinity")


def _stripped(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def load_checkpoint(model: nn.Module, path: str | os.PathLike, prefer: str = "ema") -> None:
    """Loads a file strictly into the model, or raises CheckpointError with the model untouched."""
    load_state(model, read_checkpoint(path, prefer), str(path))


def load_state(model: nn.Module, state: dict[str, Tensor], source: str, assign: bool = False) -> None:
    """Checks every key and shape, then loads the state dict strictly; `source` names the file in errors.

    assign=True replaces the parameters by the given tensors, as a model built on the meta device needs.
    """
    check_keys(model, state, source)
    model.load_state_dict(state, assign=assign)


def check_keys(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Raises CheckpointError unless the state dict has the model's keys and shapes."""
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    check_floating(expected, state, source)
    if wrong:
        key = wrong[0]
        hint = ""
        if key in ("pos_embed", "temp_embed"):
            hint = "; build the model at the file's size and give it extend_space / extend_time for others"
        raise CheckpointError(
            f"{source}: {key} must have shape {tuple(expected[key].shape)}, found {tuple(state[key].shape)}"
            f" ({len(wrong)} such keys{hint})"
        )
    if missing or unknown:
        first = f"{missing[0]} must have shape {tuple(expected[missing[0]].shape)}, found none" if missing else ""
        extra = f"{unknown[0]} {tuple(state[unknown[0]].shape)} is unknown" if unknown else ""
        raise CheckpointError(
            f"{source}: not this model: {'; '.join(filter(None, (first, extra)))} "
            f"({len(missing)} keys missing, {len(unknown)} unknown)"
        )


def check_floating(expected: dict[str, Tensor], state: dict[str, Tensor], source: str) -> None:
    """Raises CheckpointError where a weight is of integers, which `load_state_dict` would cast without a word."""
    for key, value in expected.items():
        if key in state and value.is_floating_point() and not state[key].is_floating_point():
            raise CheckpointError(f"{source}: {key} must be of floating numbers, found {state[key].dtype}")


def save_checkpoint(model: nn.Module, path: str | os.PathLike) -> None:
    """Writes the state dict as safetensors; the file appears whole or not at all."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"save_checkpoint: path must end in .safetensors, got {path.name}")
    save_state(model.state_dict(), path)


def save_state(
    state: dict[str, Tensor],
    path: Path,
    about: dict[str, Any] | None = None,
) -> None:
    """Writes a state dict as safetensors, or as the .pt that upstream's scripts load; whole or not at all.

    What the weights are (`about`, plain values) goes into the metadata, or into a JSON file beside the .pt.
    """
    metadata = {"format": "pt"}
    if about is not None and path.suffix == ".pt":
        with atomic(path.with_suffix(".json")) as partial:
            partial.write_text(json.dumps({ABOUT: about}, indent=1) + "\n")
    elif about is not None:
        metadata[ABOUT] = json.dumps(about)
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic(path) as partial:
        if path.suffix == ".pt":
            # torch.save would write the whole storage behind a view
            torch.save({"ema": {key: value.clone() for key, value in state.items()}}, partial)
        else:
            save_tensors(state, partial, metadata)


def save_tensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file whose bytes follow from what it holds: the library writes metadata in any order."""
    save_file(state, path, metadata=metadata)
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        held = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(held) <= size, path
        file.seek(8)
        file.write(held.ljust(size))


def read_about(path: Path) -> dict[str, Any] | None:
    """Returns what `save_state` wrote about the weights, or None."""
    beside = path.with_suffix(".json")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                held = (file.metadata() or {}).get(ABOUT)
            found = None if held is None else json.loads(held)
        else:
            found = json.loads(beside.read_text()).get(ABOUT) if path.suffix == ".pt" and beside.is_file() else None
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: what is known of its weights can't be read: {error}") from error
    if found is not None and not (isinstance(found, dict) and {"family", "model", "classes", "config"} <= found.keys()):
        raise CheckpointError(f"{path}: what is known of its weights must be as `latte-fast convert` wrote it")
    return found


def cast(state: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Returns the state dict with its floating tensors in this dtype; None keeps theirs."""
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
