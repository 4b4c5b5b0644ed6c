"""Fused windows: overlapping windows of a film, whose predictions are blended at every step, from file to file."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from latte_fast.diffusion.noise import FrameNoise, Use
from latte_fast.long_films.stepper import Stepper
from latte_fast.long_films.store import Frames, Tick
from latte_fast.sampling.windows import window_starts


def weights_of(window: int, kind: str) -> Tensor:
    """Returns the weight of each frame of a window, (f,)."""
    if kind == "flat":
        return torch.ones(window)
    ramp = torch.arange(1, window + 1, dtype=torch.float32)
    return torch.minimum(ramp, ramp.flip(0))


class Windows:
    """Draws films step by step; a unit is some windows of a step, the film's first ones first.

    A step reads one file and writes the other. A frame takes the step when all windows that hold it are done.

    Args:
        stepper: model and sampler.
        frames: number of frames of the film.
        path: file of the films' frames; another lies beside it.
        tick: function called with the number of forwards done.
    """

    def __init__(self, stepper: Stepper, frames: int, path: Path, tick: Tick):
        self.stepper, self.frames, self.tick = stepper, frames, tick
        self.window, self.shape = stepper.source.shape[0], stepper.source.shape[1:]
        self.steps, options = stepper.request.steps, stepper.request.options
        self.seed, self.numbers = stepper.request.seed, stepper.numbers
        assert options.stride is not None and options.weights is not None
        self.starts = window_starts(frames, self.window, self.window - options.stride)
        self.weights = weights_of(self.window, options.weights)
        self.total = torch.zeros(frames)
        for start in self.starts:
            self.total[start : start + self.window] += self.weights
        self.most = options.at_once
        self.groups = [self.starts[i : i + self.most] for i in range(0, len(self.starts), self.most)]
        names = (path, path.with_name(path.name + ".next"))
        self.stores: Sequence[Frames] = [Frames(name, len(self.numbers), frames, self.shape) for name in names]
        self.units = self.steps * len(self.groups)

    @property
    def film(self) -> Frames:
        return self.stores[self.steps % 2]

    def forwards(self, unit: int) -> int:
        return 1

    def held(self) -> dict[str, Tensor]:
        return {"sums": self.sums}

    def take(self, unit: int, held: dict[str, Tensor]) -> None:
        self.sums = held["sums"].to(self.stepper.source.device) if held else torch.empty(0)
        if not unit:
            noise = FrameNoise(self.seed, self.numbers, self.shape, Use.START)
            for first in range(0, self.frames, self.window):
                self.stores[0].write(first, noise.next(min(self.window, self.frames - first)))
        self.noise = self.noise_of(unit, self.base(unit))

    def base(self, unit: int) -> int:
        """Returns the first frame that has not taken the step before a unit."""
        return self.groups[unit % len(self.groups)][0]

    def noise_of(self, unit: int, skip: int) -> FrameNoise | None:
        step = unit // len(self.groups)
        if not self.stepper.noisy:
            return None
        return FrameNoise(self.seed, self.numbers, self.shape, Use.STEP, step, skip)

    def run(self, unit: int) -> None:
        step, at = divmod(unit, len(self.groups))
        source, target = self.stores[step % 2], self.stores[(step + 1) % 2]
        starts, size, level = self.groups[at], self.window, self.steps - 1 - step
        first, stop = starts[0], starts[-1] + size
        device = self.stepper.source.device
        x = source.read(first, stop).to(device)  # (B, n, C, h, w)
        parts = torch.cat([x[:, start - first : start - first + size] for start in starts])
        t = self.stepper.levels([[level]] * len(starts))[:, 0]
        out = self.stepper.outputs(parts, t, self.stepper.keywords_at(level)).unflatten(0, (len(starts), -1))
        sums = out.new_zeros(x.shape[0], stop - first, *out.shape[3:])
        if at:
            sums[:, : self.sums.shape[1]] = self.sums
        for start, own in zip(starts, out, strict=True):
            share = (self.weights / self.total[start : start + size]).view(-1, 1, 1, 1).to(out)
            sums[:, start - first : start - first + size] += share * own
        last = at + 1 == len(self.groups)
        end = stop if last else self.groups[at + 1][0]  # frames below are in no later window
        if not at:
            self.noise = self.noise_of(unit, 0)
        ready = end - first
        noise = None if self.noise is None else self.noise.next(ready).to(device)
        t = self.stepper.levels([[level] * ready])
        target.write(first, self.stepper.update(sums[:, :ready], x[:, :ready], t, noise))
        self.sums = sums[:, ready:]
        self.tick(1)


def film_stores(path: Path) -> Sequence[Path]:
    """Returns the files that a film drawn to `path` may leave."""
    return (path, path.with_name(path.name + ".next"))
