"""The result of a measurement: the value, all that it depends on, and reasons not to compare it."""

import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latte_fast.evaluation.config import PROTOCOL, Evaluation
from latte_fast.files import atomic

NAMES = {"fvd": "FVD", "fid": "FID", "is": "inception score"}


@dataclass(frozen=True)
class Result:
    """A metric of a folder of samples.

    Args:
        config: settings of the measurement.
        value: distance or score.
        spread: standard deviation of the score over its splits.
        features: width of the detector's features.
        detector: sha256 of the detector's file.
        samples: what is known of the samples.
        real: what is known of the real set.
    """

    config: Evaluation
    value: float
    spread: float | None
    features: int
    detector: str
    samples: dict[str, Any]
    real: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        """Reasons not to compare or trust the value; empty if the protocol was followed."""
        config, said = self.config, []
        protocol = PROTOCOL[config.metric]["images" if config.metric == "fid" else "clips"]
        counts = {"samples": self.samples["count"]} | ({"real": self.real["count"]} if self.real else {})
        few = [f"{count} {name}" for name, count in counts.items() if count < protocol]
        if few:
            said.append(
                f"published numbers take {protocol} {config.unit}s of a set that has them, got {' and '.join(few)}"
            )
        if len({*counts.values()}) > 1:
            said.append(f"the sets differ in {config.unit}s: {counts['samples']} samples, {counts['real']} real")
        fewest = min(counts.values())
        if self.real and fewest <= self.features:
            far = f"{config.unit}s are too few for {self.features} features: such sets look further apart than they are"
            said.append(f"{fewest} {far}")
        if self.samples["sizes"] > 1:
            said.append(
                f"samples are of {self.samples['sizes']} sizes, cropped and scaled to {config.size}x{config.size}"
            )
        elif self.samples["pixels"] != [config.size, config.size]:
            had = "x".join(map(str, self.samples["pixels"]))
            said.append(f"samples are {had} pixels, cropped and scaled to {config.size}x{config.size}")
        if self.samples["suffix"] == ".gif":
            said.append("a gif has 256 colours, which a detector sees; sample with --format npz or mp4")
        named = self.samples["sampled"].get("count", self.samples["films"])
        if named != self.samples["films"]:
            said.append(f"samples.json names {named} samples, the folder holds {self.samples['films']}")
        return said

    def lines(self) -> list[str]:
        """Returns lines of text: the value, what was measured, and what it may be compared with."""
        config = self.config
        spread = "" if self.spread is None else f" +- {self.spread:.3g}"
        of = f"{self.samples['count']} samples"
        if self.real:
            of += f" against {self.real['count']} real {config.unit}s"
        if config.metric != "fid":
            of += f", {config.setting('frames')} frames each"
        if config.metric == "fvd":
            of += f" (real: interval {config.setting('interval')})"
        said = [
            f"{NAMES[config.metric]} {self.value:.6g}{spread}",
            f"  of {of}, at {config.size}x{config.size}; {self.features} features of {Path(config.detector).name}",
            f"  compare with numbers of the same detector (sha256 {self.detector[:12]}), settings and real set alone",
        ]
        if "kept" in self.real:
            said.append(f"  the real set's features were kept in {self.real['kept']}")
        left = [f"{self.real['short']} too short"] if self.real.get("short") else []
        left += [f"{len(self.real['broken'])} that do not decode"] if self.real.get("broken") else []
        if left:
            said.append(f"  left out of the real set: {' and '.join(left)}")
        return said + [f"  warning: {warning}" for warning in self.warnings]

    def record(self) -> dict[str, Any]:
        """Returns everything that is needed to repeat the measurement."""
        config = self.config
        asked = {name: config.setting(name) for name in PROTOCOL[config.metric]}
        return {
            "metric": config.metric,
            "value": self.value,
            **({} if self.spread is None else {"spread": self.spread}),
            "features": self.features,
            "settings": {**asked, "size": config.size, "seed": config.seed, "device": config.device},
            "samples": self.samples,
            "real": self.real,
            "detector": {"file": str(config.detector), "sha256": self.detector},
            "warnings": self.warnings,
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    try:
        own = importlib.metadata.version("latte_fast")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    libraries = {"torch": torch.__version__, "numpy": np.__version__, "av": importlib.metadata.version("av")}
    return {"latte_fast": own, "python": platform.python_version(), **libraries}


def check_out(path: Path) -> Path:
    """Returns the path if it is that of a new .json file in a writable folder, else raises ValueError."""
    if path.suffix != ".json":
        raise ValueError(f"evaluate: out must end in .json, got {path}")
    if path.exists():
        raise ValueError(f"evaluate: out must be a new file, got {path}, which is there")
    return check_writable("out", path)


def check_writable(name: str, path: Path) -> Path:
    """Returns the path if its folder can be written to, else raises ValueError: before the work, not after it."""
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"evaluate: {name} must be in a folder that can be written to, got {path}")
    return path


def write_result(path: Path, result: Result) -> None:
    """Writes the record as JSON; the file appears whole or not at all."""
    with atomic(check_out(path)) as partial:
        partial.write_text(json.dumps(result.record(), indent=1) + "\n")
