"""FIFO: a queue of frames at increasing noise, from whose clean end a finished frame comes at every iteration."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from latte_fast.diffusion.noise import FrameNoise, Use, normal
from latte_fast.long_films.diagonal import Diagonal, Window
from latte_fast.long_films.stepper import Stepper
from latte_fast.long_films.store import Frames, Tick


class Fifo:
    """Draws films by a queue; a unit is an iteration of it.

    Args:
        stepper: model and sampler.
        schedule: frames, steps and windows of each iteration.
        path: file of the finished frames.
        tick: function called with the number of forwards done.
    """

    def __init__(self, stepper: Stepper, schedule: Diagonal, path: Path, tick: Tick):
        self.stepper, self.schedule, self.tick = stepper, schedule, tick
        self.shape = stepper.source.shape[1:]
        self.seed, self.numbers = stepper.request.seed, stepper.numbers
        self.film = Frames(path, len(self.numbers), schedule.frames, self.shape)
        self.stores: Sequence[Frames] = [self.film]
        self.units = schedule.iterations

    def forwards(self, unit: int) -> int:
        return len(self.groups(unit))

    def groups(self, iteration: int) -> list[list[Window]]:
        """Returns the windows of an iteration by forward: those with the same keywords, up to `at_once` of them."""
        most = self.stepper.request.options.at_once
        out: list[list[Window]] = []
        windows = self.schedule.windows(iteration)
        for _, same in itertools.groupby(windows, lambda w: self.stepper.keywords_at(self.cleanest(w, iteration))):
            some = list(same)
            out += [some[i : i + most] for i in range(0, len(some), most)]
        return out

    def cleanest(self, window: Window, iteration: int) -> int:
        """Returns the lowest step of the frames that a window moves, which sets the model's keywords."""
        return self.schedule.level(window.first, iteration)

    def held(self) -> dict[str, Tensor]:
        return {"queue": self.queue}

    def take(self, unit: int, held: dict[str, Tensor]) -> None:
        device = self.stepper.source.device
        self.first, self.stop = (0, 0) if not unit else (self.schedule.span(unit)[0], self.schedule.span(unit - 1)[1])
        self.queue = held["queue"].to(device) if held else torch.zeros(len(self.numbers), 0, *self.shape, device=device)
        self.noise = FrameNoise(self.seed, self.numbers, self.shape, Use.START, skip=self.stop)

    def run(self, unit: int) -> None:
        self.fill(self.schedule.span(unit)[1])
        self.queue = self.moved(unit)
        for frame in self.schedule.finished(unit):
            place = frame - self.first
            self.film.write(frame, self.queue[:, place : place + 1])
        if unit + 1 < self.units:
            first = self.schedule.span(unit + 1)[0]
            self.queue, self.first = self.queue[:, first - self.first :], first

    def fill(self, stop: int) -> None:
        """Lets new frames into the queue, as noise."""
        if stop > self.stop:
            new = self.noise.next(stop - self.stop).to(self.queue.device)
            self.queue, self.stop = torch.cat([self.queue, new], dim=1), stop

    def moved(self, iteration: int) -> Tensor:
        """Returns the queue after each of its frames has taken a step."""
        stepper, schedule, size = self.stepper, self.schedule, self.schedule.window
        noise = None
        if stepper.noisy:
            shape = (self.queue.shape[1], *self.shape)
            rows = [normal(self.seed, number, shape, Use.STEP, iteration) for number in self.numbers]
            noise = torch.stack(rows).to(self.queue.device)
        out = self.queue.clone()
        for group in self.groups(iteration):
            t = stepper.levels([[schedule.level(w.start + i, iteration) for i in range(size)] for w in group])
            x = self.cut(self.queue, group)
            keywords = stepper.keywords_at(self.cleanest(group[0], iteration))
            drawn = None if noise is None else self.cut(noise, group)
            stepped = stepper.update(stepper.outputs(x, t, keywords), x, t, drawn).unflatten(0, (len(group), -1))
            for window, part in zip(group, stepped, strict=True):
                own = part[:, window.first - window.start : window.stop - window.start]
                out[:, window.first - self.first : window.stop - self.first] = own
            self.tick(1)
        return out

    def cut(self, queue: Tensor, windows: Sequence[Window]) -> Tensor:
        """Returns the frames of windows, (n B, f, C, h, w), window by window."""
        places = [window.start - self.first for window in windows]
        return torch.cat([queue[:, place : place + self.schedule.window] for place in places])
