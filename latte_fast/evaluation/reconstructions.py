"""Measures a 3D-VQGAN while it trains: what it decodes of the tokens of clips that it is not trained on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latte_fast.data import open_dataset
from latte_fast.distributed.ranks import Ranks
from latte_fast.evaluation.during_training import RunEvaluation
from latte_fast.evaluation.pixels import psnr
from latte_fast.media.pixels import to_pixels
from latte_fast.models.config import require
from latte_fast.runs.config import TrainConfig

PSNR = "eval_psnr"


def run_evaluation(config: TrainConfig, objective: Any, ranks: Ranks, step: int) -> RunEvaluation | None:
    """Returns what measures a run, if asked for: a Latte by the clips it draws, a VQGAN by those it decodes."""
    if not config.eval.every:
        return None
    if config.objective == "vqgan":
        return Reconstructions(config, objective.dataset, objective.decoded, ranks, step)
    return RunEvaluation(config, objective.dataset, objective.draw, ranks, step)


class Reconstructions(RunEvaluation):
    """Compares clips with what is decoded of their tokens: a distance of features, and PSNR.

    Args:
        config: configuration of the run.
        trained: data set that the run is trained on, which must not have the clips that it is judged on.
        decoded: function from clips (B, F, 3, H, W) in [-1, 1] to what is decoded of them, uint8 (B, F, H, W, 3).
        ranks: processes of the run; the first decodes.
        step: number of updates done.
    """

    def __init__(
        self, config: TrainConfig, trained: Any, decoded: Callable[[Tensor], Tensor], ranks: Ranks, step: int
    ) -> None:
        held = held_out(config, trained)
        count = min(config.eval.count, len(held))
        asked = replace(config, eval=replace(config.eval, count=count))
        super().__init__(asked, held, self._decode, ranks, step)
        require(count >= self.row.least, "eval.path", f"a set of at least {self.row.least} clips", count)
        self.decoded = decoded
        self.clips: list[Tensor] = []  # those of this measurement, in the detector's batches

    def _title(self) -> str:
        title = super()._title()
        # rFVD is the field's name for the FVD of reconstructions
        return f"r{title}" if title == self.config.eval.metric else title

    def _decode(self, numbers: range) -> Tensor | None:
        if not self.ranks.first:
            return None
        videos = self.videos(self.numbers[numbers.start : numbers.stop])
        self.clips.append(to_pixels(videos))
        return self.decoded(videos)

    def _measured(self, parts: list[Tensor]) -> dict[str, float]:
        pairs, self.clips = zip(self.clips, parts, strict=True), []
        films = [(a / 255, b / 255) for clips, made in pairs for a, b in zip(clips, made, strict=True)]
        # of each film the mean over its frames, as `latte-fast evaluate --metric psnr` takes it
        found = [psnr(a.movedim(-1, 1), b.movedim(-1, 1)).mean() for a, b in films]
        return super()._measured(parts) | {PSNR: torch.stack(found).mean().item()}


def held_out(config: TrainConfig, trained: Any) -> Any:
    """Opens the clips that a VQGAN is judged on: those that the configuration names, or shapes of another seed."""
    data, asked = config.data, config.eval
    if data.kind == "shapes":
        return open_dataset(replace(data, seed=data.seed + 1), config.frames, config.size)
    # frame times are kept for the films to train on; and half of the clips mirrored would change nothing
    named = replace(data, path=asked.path or data.path, split=asked.split, index="", flip=False)
    found = open_dataset(named, config.frames, config.size)
    shared = films_of(found) & films_of(trained)
    rule = "a folder, or eval.split a list, of clips that are not trained on"
    got = f"{len(shared)} of {len(found)} that are, {min(shared)[0]} first" if shared else ""
    require(not shared, "eval.path", rule, got)
    return found


def films_of(dataset: Any) -> set[tuple[str, str]]:
    """Returns the films of a data set by file, or by folder and first picture."""
    places = [source.place for source in dataset.sources]
    return {(str(place.path.resolve()), place.pictures[0] if place.pictures else "") for place in places}
