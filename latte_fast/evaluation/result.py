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

from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.score import Score
from latte_fast.files import atomic


@dataclass(frozen=True)
class Result:
    """A metric of a set of samples.

    Args:
        config: settings of the measurement.
        score: the number, and what tells how sure it is; of the first window where there are several.
        features: width of the detector's features.
        detector: sha256 of the detector's file; empty without one.
        samples: what is known of the samples.
        real: what is known of the real set.
        network: name of a network that this package knows; empty for a TorchScript file.
        published: whether published numbers may be made with the network.
        curve: scores of the windows from start to end of the films; empty where there is one.
    """

    config: Evaluation
    score: Score
    features: int
    detector: str
    samples: dict[str, Any]
    real: dict[str, Any]
    network: str = ""
    published: bool = True
    curve: tuple[Score, ...] = ()

    @property
    def value(self) -> float:
        return self.score.value

    @property
    def spread(self) -> float | None:
        return self.score.spread

    @property
    def title(self) -> str:
        """The metric's name, which another network's numbers do not get."""
        row = self.config.row
        return row.title if self.published else f"{row.form} of {self.network} features"

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows of each set."""
        counts = {"samples": self.samples["count"]}
        return counts | ({"real": self.real["count"]} if self.config.row.against == "real" else {})

    @property
    def warnings(self) -> list[str]:
        """Reasons not to compare or trust the value; empty if the protocol was followed."""
        config, said, counts = self.config, [], self.counts
        unit, fewest = config.unit, min(self.counts.values())
        if not self.published:
            said.append(f"{self.network} is no network of published numbers: this is no {config.row.title}")
        if config.row.call is not None and config.row.against != "pairs":
            protocol = config.row.settings["images" if unit == "frame" else "clips"]
            few = [f"{count} {name}" for name, count in counts.items() if count < protocol]
            if few:
                said.append(
                    f"published numbers take {protocol} {unit}s of a set that has them, got {' and '.join(few)}"
                )
        if len({*counts.values()}) > 1:
            said.append(f"the sets differ in {unit}s: {counts['samples']} samples, {counts['real']} real")
        if config.row.moments and fewest <= self.features:
            far = f"{unit}s are too few for {self.features} features: such sets look further apart than they are"
            said.append(f"{fewest} {far}")
        return said if "features" in self.samples else said + self._of_films()

    def _of_films(self) -> list[str]:
        side, said = self.config.side, []
        scaled = f"cropped and scaled to {side}x{side}"
        if side and self.samples["sizes"] > 1:
            said.append(f"samples are of {self.samples['sizes']} sizes, {scaled}")
        elif side and self.samples["pixels"] != [side, side]:
            had = "x".join(map(str, self.samples["pixels"]))
            said.append(f"samples are {had} pixels, {scaled}")
        if self.samples["suffix"] == ".gif":
            said.append("a gif has 256 colours, which a detector sees; sample with --format npz or mp4")
        named = self.samples["sampled"].get("count", self.samples["films"])
        if named != self.samples["films"]:
            said.append(f"samples.json names {named} samples, the folder holds {self.samples['films']}")
        if self.samples["broken"]:
            first = self.samples["broken"][0]
            said.append(f"{len(self.samples['broken'])} samples do not decode and were left out, {first} first")
        return said

    def lines(self) -> list[str]:
        """Returns lines of text: the value, what was measured, and what it may be compared with."""
        said = [f"{self.title} {self.value:.6g}{self._sureness(self.score)}", f"  of {self._sets()}"]
        if self.detector:
            digest = self.detector[:12]
            said.append(f"  compare with numbers of the same detector (sha256 {digest}), settings and real set alone")
        said += [f"  {name} {value:.6g}" for name, value in self.score.values.items()]
        for i, score in enumerate(self.curve):
            said.append(f"  window {i + 1} of {len(self.curve)}: {score.value:.6g}{self._sureness(score)}")
        if "kept" in self.real:
            said.append(f"  the real set's features were kept in {self.real['kept']}")
        left = [f"{self.real['short']} too short"] if self.real.get("short") else []
        left += [f"{len(self.real['broken'])} that do not decode"] if self.real.get("broken") else []
        if left:
            said.append(f"  left out of the real set: {' and '.join(left)}")
        return said + [f"  warning: {warning}" for warning in self.warnings]

    def _sets(self) -> str:
        config = self.config
        of = f"{self.samples['count']} samples"
        if config.row.against == "pairs":
            of += f" and the films of their names in {self.real['path']}"
        elif self.real:
            of += f" against {self.real['count']} real {config.unit}s"
        if "features" in self.samples:
            return f"{of}, {self.features} features in files"
        if config.unit == "clip":
            of += f", {config.setting('frames')} frames each"
        if "interval" in config.row.settings and self.real:
            of += f" (real: interval {config.setting('interval')})"
        of += f", at {config.side}x{config.side}" if config.side else ", at their own size"
        if not self.detector:
            return of
        return f"{of}; {self.features} features of {self.network or Path(config.detector).name}"

    def _sureness(self, score: Score) -> str:
        said = "" if score.spread is None else f" +- {score.spread:.3g}"
        return said if score.interval is None else f"{said} [{score.interval[0]:.6g}, {score.interval[1]:.6g}]"

    def record(self) -> dict[str, Any]:
        """Returns everything that is needed to repeat the measurement."""
        config = self.config
        file = {"file": str(config.detector), "sha256": self.detector}
        curve = [{"window": i, **record_of(score)} for i, score in enumerate(self.curve)]
        return {
            "metric": config.metric,
            "name": self.title,
            **record_of(self.score),
            **({"curve": curve} if curve else {}),
            "features": self.features,
            "settings": {**config.settings, "device": config.device},
            "samples": self.samples,
            "real": self.real,
            "detector": file | ({"network": self.network} if self.network else {}),
            "warnings": self.warnings,
            "versions": versions(),
        }


def record_of(score: Score) -> dict[str, Any]:
    """Returns a score as plain values, without those that it has not."""
    found: dict[str, Any] = {"value": score.value}
    found |= {} if score.spread is None else {"spread": score.spread}
    found |= {} if score.interval is None else {"interval": list(score.interval)}
    return found | ({"values": score.values} if score.values else {})


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
