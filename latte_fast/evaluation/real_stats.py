"""Keeps the real set's moments in a file, with the settings they were made with, and refuses them for others."""

import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.frechet import Moments
from latte_fast.files import atomic

log = logging.getLogger("latte_fast.evaluation")
VERSION = 2
KEY = "evaluation"
TENSORS = ("mean", "scatter")


def settings_of(config: Evaluation, detector: str, set_digest: str | None) -> dict[str, Any]:
    """Returns the settings that kept moments must agree with; without a real set, no digest of it is among them."""
    asked = {name: config.setting(name) for name in config.row.settings if name != "batch"}
    made = {
        "version": VERSION,
        "metric": config.metric,
        "detector": detector,
        **asked,
        "size": config.side,
        "seed": config.seed,
    }
    return made if set_digest is None else made | {"kind": config.kind, "set": set_digest}


def write_stats(path: Path, moments: Moments, settings: dict[str, Any], about: dict[str, Any]) -> None:
    """Writes mean and scatter in float64, and as metadata the settings, the count and what is known of the set."""
    if path.exists():
        log.warning("real_stats was written by somebody else meanwhile, and is left as it is: %s", path)
        return
    held = json.dumps({"settings": settings, "count": moments.count, "about": about})
    tensors = {name: getattr(moments, name).contiguous() for name in TENSORS}
    with atomic(path) as partial:
        save_file(tensors, partial, metadata={KEY: held})


def read_about(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Reads what a file says of its set, but no tensor; raises ValueError naming a setting that does not agree."""
    held = _held(path)
    for name, wanted in settings.items():
        had = held["settings"].get(name)
        if had != wanted:
            if name == "set":
                rule, got = "hold the moments of the same videos and frames", "others (names, lengths or bytes changed)"
            elif name == "detector":
                rule, got = f"be of the detector with sha256 {wanted[:12]}", f"{str(had)[:12]}"
            else:
                rule, got = f"have {name} {wanted}", f"{had}"
            raise ValueError(f"evaluate: real_stats must {rule}, got {got} in {path}; give another file to make new")
    return held["about"] | {"kind": held["settings"].get("kind"), "set": held["settings"].get("set")}


def read_stats(path: Path) -> Moments:
    """Reads the moments of a file that `read_about` accepted."""
    count = _held(path)["count"]
    with safe_open(path, "pt") as file:
        return Moments(count, *(file.get_tensor(name) for name in TENSORS))


def _held(path: Path) -> dict[str, Any]:
    rule = "evaluate: real_stats must be a file that this option wrote"
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        with safe_open(path, "pt") as file:
            held = json.loads((file.metadata() or {})[KEY])
            whole = {*TENSORS} <= {*file.keys()} and {"settings", "count", "about"} <= held.keys()
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{rule}, got {path} ({error!r})") from error
    if not whole:
        raise ValueError(f"{rule}, got {path} without all it holds")
    return held
