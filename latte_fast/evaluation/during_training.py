"""Measures a run while it trains: samples from the EMA weights against clips of the training set."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_fast.distributed.ranks import Ranks
from latte_fast.evaluation.detector import Detector, check_detector
from latte_fast.evaluation.metrics import METRICS
from latte_fast.media.pixels import to_pixels
from latte_fast.models.config import require
from latte_fast.runs import checkpoint
from latte_fast.runs.config import TrainConfig

# file in a run's folder that names the best checkpoint
BEST = "best.json"
# clips in one call of the sampler and of the detector
BATCH = 8
MEASURED = tuple(
    name for name, row in METRICS.items() if row.call is not None and row.against not in ("pairs", "start")
)
DISTANCES = tuple(name for name in MEASURED if METRICS[name].against == "real")


def check_eval(config: TrainConfig) -> None:
    """Refuses settings of `eval` that cannot be, before the data are opened."""
    asked = config.eval
    if not asked.every:
        return
    shows = config.objective in ("denoising", "vqgan")
    require(shows, "eval.every", f"0 for {config.objective}, which makes no clips", asked.every)
    require(config.data.kind != "latents", "eval.every", "0 for latents, whose films are not there", asked.every)
    logged = asked.every % config.log_every == 0
    require(logged, "eval.every", f"a multiple of log_every = {config.log_every}", asked.every)
    names = MEASURED if config.objective == "denoising" else DISTANCES
    require(asked.metric in names, "eval.metric", f"one of {', '.join(names)}", asked.metric)
    least = METRICS[asked.metric].least
    require(asked.count >= least, "eval.count", f"at least {least} for {asked.metric}", asked.count)
    check_held_out(config)
    check_detector(asked.metric, asked.detector)


def check_held_out(config: TrainConfig) -> None:
    """Refuses clips to be judged on where there are none to name, and a VQGAN of films without any."""
    asked, films = config.eval, config.objective == "vqgan" and config.data.kind != "shapes"
    for name in ("path", "split"):
        rule = "empty but for a VQGAN trained on films"
        require(films or not getattr(asked, name), f"eval.{name}", rule, getattr(asked, name))
    rule = "a folder of clips to judge, or eval.split a list of them, which the VQGAN is not trained on"
    require(not films or bool(asked.path or asked.split), "eval.path", rule, asked.path)


def log_name(detector: Detector) -> str:
    """Returns a metric's name in the log, which a network of no published numbers does not get."""
    if detector.published:
        return detector.metric
    form = METRICS[detector.metric].form.lower().replace("'", "")
    return f"{form} {detector.name.lower()}".replace(" ", "_")


class RunEvaluation:
    """Measures the samples of a run, and remembers which checkpoint was the best.

    Args:
        config: configuration of the run.
        dataset: data set whose clips are the real ones.
        draw: function that draws so many clips, uint8 (B, F, H, W, 3), from the EMA weights; every rank calls it.
        ranks: processes of the run.
        step: number of updates done.
    """

    def __init__(
        self, config: TrainConfig, dataset: Any, draw: Callable[[range], Tensor | None], ranks: Ranks, step: int
    ) -> None:
        self.config, self.dataset, self.draw, self.ranks = config, dataset, draw, ranks
        self.row = METRICS[config.eval.metric]
        self.path = Path(config.out) / BEST
        self.detector = Detector(config.eval.metric, config.eval.detector, str(ranks.device)) if ranks.first else None
        self.name: str = ranks.from_first(lambda: f"eval_{self._title()}")
        self.real: Tensor | None = None
        self.best: tuple[int, float] | None = ranks.from_first(lambda: self._read(step))

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps whose checkpoints stay, whatever their age."""
        return () if self.best is None else (self.best[0],)

    def measure(self) -> dict[str, float]:
        """Draws samples and returns what a log line says of them, the same on every rank; `name` is the metric's."""
        count = self.config.eval.count
        parts = [self.draw(range(first, min(first + BATCH, count))) for first in range(0, count, BATCH)]
        return self.ranks.from_first(lambda: self._measured([part for part in parts if part is not None]))

    def improves(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        sign = 1 if self.row.better == "lower" else -1
        return self.best is None or sign * value < sign * self.best[1]

    def remember(self, step: int, value: float) -> None:
        """Notes that this step's checkpoint, which is to be saved next, is the best."""
        self.best = (step, value)

    def write(self) -> None:
        """Writes which checkpoint is the best, once it is there."""
        if self.best is not None and self.ranks.first:
            step, value = self.best
            self.path.write_text(json.dumps({"step": step, "metric": self.config.eval.metric, "value": value}) + "\n")

    def _read(self, step: int) -> tuple[int, float] | None:
        """Returns the best step so far and its value, if its checkpoint is still there and is not of a later step."""
        try:
            held = json.loads(self.path.read_text())
            best = int(held["step"]), float(held["value"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        there = best[0] in map(checkpoint.step_of, checkpoint.all_checkpoints(self.path.parent))
        return best if there and best[0] <= step and held.get("metric") == self.config.eval.metric else None

    def _title(self) -> str:
        assert self.detector is not None
        return log_name(self.detector)

    def _measured(self, parts: list[Tensor]) -> dict[str, float]:
        return {self.name: self._score(parts)}

    def _score(self, parts: list[Tensor]) -> float:
        if self.real is None and self.row.against == "real":
            self.real = torch.cat([self._rows(self._clips(part)) for part in self._real_parts()])
        samples = torch.cat([self._rows(part) for part in parts])
        count = len(samples) if self.real is None else min(len(samples), len(self.real))
        settings = {"seed": self.config.seed, "subsets": 100, "subset": 0, "neighbours": min(5, count - 1)}
        return self.row.score(samples, self.real, settings).value

    def _rows(self, clips: Tensor) -> Tensor:
        """Returns the features of clips, or of each of their frames, uint8 (B, F, H, W, 3)."""
        assert self.detector is not None
        x = clips.movedim(-1, -3)
        x = x.flatten(0, 1) if self.row.unit == "frame" else x
        names = [f"sample {i}" for i in range(len(x))]
        return self.detector(x, names).double()

    def _real_parts(self) -> list[list[int]]:
        """Returns numbers of clips, evenly spaced over the data, in batches."""
        numbers = self.numbers
        return [numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH)]

    @property
    def numbers(self) -> list[int]:
        """Numbers of the real clips, evenly spaced over the data."""
        count = min(self.config.eval.count, len(self.dataset))
        return [i * len(self.dataset) // count for i in range(count)]

    def videos(self, numbers: list[int]) -> Tensor:
        """Returns real clips (B, F, 3, H, W) in [-1, 1]."""
        return torch.stack([self.dataset[(i, i)]["video"][: self.config.frames] for i in numbers])

    def _clips(self, numbers: list[int]) -> Tensor:
        return to_pixels(self.videos(numbers))
