"""Latent frames of films on disk, and work that goes on where it was stopped."""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latte_fast.files import atomic

Tick = Callable[..., object]  # called with a number of forwards
# seconds between writes of what the work holds
KEPT_EVERY = 5.0


class Frames:
    """Frames of some films in a file, fp32, so that memory does not grow with their number.

    Args:
        path: file, which `make` makes where there is none.
        films: number of films.
        frames: number of frames of each.
        shape: shape of a frame.
    """

    def __init__(self, path: Path, films: int, frames: int, shape: Sequence[int]):
        self.path, self.films, self.frames, self.shape = path, films, frames, tuple(shape)
        self.each = films * int(np.prod(self.shape))  # values of a frame of all films

    @property
    def whole(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == 4 * self.each * self.frames

    def make(self) -> None:
        if not self.whole:
            with self.path.open("wb") as file:
                file.truncate(4 * self.each * self.frames)

    def read(self, first: int, stop: int) -> Tensor:
        """Returns frames first .. stop - 1 of all films, (B, n, ...)."""
        values = np.fromfile(self.path, np.float32, (stop - first) * self.each, offset=4 * first * self.each)
        return torch.from_numpy(values.reshape(stop - first, self.films, *self.shape)).transpose(0, 1)

    def write(self, first: int, frames: Tensor) -> None:
        """Writes frames (B, n, ...) from frame `first` on."""
        values = frames.detach().transpose(0, 1).to("cpu", torch.float32).contiguous().numpy()
        with self.path.open("r+b") as file:
            file.seek(4 * first * self.each)
            file.write(values.data)

    def flush(self) -> None:
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())


class Work(Protocol):
    """What draws films in units, each of which is done as a whole."""

    units: int
    stores: Sequence[Frames]

    @property
    def film(self) -> Frames:
        """The films' frames, once all units are done."""
        ...

    def forwards(self, unit: int) -> int:
        """Returns the number of forwards of a unit."""
        ...

    def run(self, unit: int) -> None: ...

    def held(self) -> dict[str, Tensor]:
        """Returns what the next unit needs beside the stores."""
        ...

    def take(self, unit: int, held: dict[str, Tensor]) -> None:
        """Takes over what was held before a unit; an empty dict before the first."""
        ...


def work_off(work: Work, keep: Path, mark: str, tick: Tick) -> None:
    """Does the units that are not done, keeping in the file `keep` now and then what the next one needs."""
    done, held = restored(keep, mark) if all(store.whole for store in work.stores) else (0, {})
    tick(sum(work.forwards(unit) for unit in range(done)))
    for store in work.stores:
        store.make()
    if done < work.units:
        work.take(done, held)
    since = time.perf_counter()
    for unit in range(done, work.units):
        work.run(unit)
        if time.perf_counter() - since > KEPT_EVERY or unit == work.units - 1:
            for store in work.stores:
                store.flush()
            about = {"done": str(unit + 1), "mark": mark}
            with atomic(keep) as partial:
                save_file({name: x.cpu().contiguous() for name, x in work.held().items()}, partial, metadata=about)
            since = time.perf_counter()


def restored(keep: Path, mark: str) -> tuple[int, dict[str, Tensor]]:
    """Returns how many units are done and what the next one needs; none where another request left the file."""
    with suppress(SafetensorError, OSError, ValueError, KeyError), safe_open(keep, "pt") as file:
        about = file.metadata() or {}
        if about["mark"] == mark:
            return int(about["done"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return 0, {}


def mark_of(held: Any, numbers: Sequence[int]) -> str:
    """Returns what tells a request's kept work from another's: the request as plain values, and the samples."""
    return json.dumps([held, list(numbers)], sort_keys=True)
