"""Rollouts: clip after clip, each of which begins with the last frames of the one before, shown clean."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from latte_fast.long_films.request import LongRequest
from latte_fast.long_films.store import Frames, Tick
from latte_fast.sampling.known import Known
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import ModelSource
from latte_fast.sampling.windows import window_starts


class Rollout:
    """Draws films clip after clip; a unit is a clip.

    The first clip is the sample of the same number. The last one begins with more frames of the film where fewer than
    a clip's new ones are left.

    Args:
        source: model that was trained with a step a frame.
        request: number of frames, of frames that are shown clean, and how clips are drawn.
        numbers: numbers of the samples.
        path: file of the films' frames.
        tick: function called with the number of forwards done.
    """

    def __init__(self, source: ModelSource, request: LongRequest, numbers: Sequence[int], path: Path, tick: Tick):
        assert request.frames is not None and request.options.context is not None
        self.source, self.numbers, self.tick = source, list(numbers), tick
        given = {field.name: getattr(request, field.name) for field in fields(Request)}
        self.request = Request(**{**given, "frames": None})
        self.size = source.shape[0]
        self.starts = window_starts(request.frames, self.size, request.options.context)
        self.film = Frames(path, len(self.numbers), request.frames, source.shape[1:])
        self.stores: Sequence[Frames] = [self.film]
        self.units = len(self.starts)

    def forwards(self, unit: int) -> int:
        return self.request.calls

    def held(self) -> dict[str, Tensor]:
        return {}

    def take(self, unit: int, held: dict[str, Tensor]) -> None:
        """Needs nothing but the frames in the file."""

    def run(self, unit: int) -> None:
        start = self.starts[unit]
        count = self.starts[unit - 1] + self.size - start if unit else 0
        known = Known(self.film.read(start, start + count).to(self.source.device)) if count else None
        latents, _ = self.source.latents(self.request, self.numbers, lambda: self.tick(1), unit, known)
        self.film.write(start + count, latents[:, count:])
