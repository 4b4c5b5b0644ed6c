"""The two sets that are compared: a real one in any of the data layer's layouts, and the samples of a folder."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from latte_fast.data import layouts
from latte_fast.data.config import DataConfig, Kind
from latte_fast.data.layouts import LayoutError, Place
from latte_fast.data.sources import Source, open_sources
from latte_fast.media.formats import PICTURES, VIDEOS
from latte_fast.media.video import VideoError

# beside the files that `latte-fast sample` writes
SAMPLES_FILE = "samples.json"
ARRAYS = (".npz",)
# raised by zipfile and numpy on damaged archives; RuntimeError where a flipped bit says encrypted
FAILURES = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ArrayFile:
    """A clip as `latte-fast sample --format npz` writes it: `video`, uint8 (F, H, W, 3)."""

    place: Place
    frames: int

    def __len__(self) -> int:
        return self.frames

    def read(self, places: Sequence[int]) -> np.ndarray:
        """Reads frames, uint8 (n, H, W, 3); raises VideoError if the file does not give them."""
        try:
            with np.load(self.place.path) as held:
                return held["video"][list(places)]
        except FAILURES as error:
            raise VideoError(f"{self.place.path}: does not decode: {error!r}") from error


Film = Source | ArrayFile


@dataclass(frozen=True)
class FilmSet:
    """Films in a fixed order.

    Args:
        root: folder of the films.
        films: films that open.
        broken: names of files that do not open.
        origin: request and count from samples.json, if the folder has one.
    """

    root: Path
    films: Sequence[Film]
    broken: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)

    def name(self, number: int) -> str:
        return self.films[number].place.path.relative_to(self.root).as_posix()


def open_real(kind: str, path: str | Path, index: str | Path = "") -> FilmSet:
    """Opens a real set, laid out as docs/data.md says; files that do not open are left out and named."""
    found = open_sources(DataConfig(kind=cast(Kind, kind), path=str(path), index=str(index)))
    return FilmSet(found.root, found.sources, [Path(p).relative_to(found.root).as_posix() for p in found.broken])


def open_samples(path: str | Path) -> FilmSet:
    """Opens arrays, films or folders of pictures at any depth, of one format; raises if one does not open."""
    root = Path(path)
    rule = "evaluate: samples must be a folder of films (mp4, gif, ...), npz arrays or folders of pictures"
    if not root.is_dir():
        raise LayoutError(f"{rule}, got {root}, which is no folder")
    found = {path.suffix.lower() for path in layouts.files(root, VIDEOS + ARRAYS)}
    pictures = layouts.files(root, PICTURES)
    if any(path.parent == root for path in pictures):
        sheet = " (contact sheets of `latte-fast sample --format png`?)" if not found else ""
        raise LayoutError(f"{rule}, got pictures in {root} itself{sheet}: {layouts.summary(root)}")
    if len(found) + bool(pictures) != 1:
        raise LayoutError(f"{rule}, of one format, got {root} with {layouts.summary(root)}")
    films: Sequence[Film]
    if found == {*ARRAYS}:
        films = [open_array(path) for path in layouts.files(root, ARRAYS)]
    else:
        # the layouts that allow any depth
        kind: Kind = "sky" if pictures else "ffs"
        films = open_sources(DataConfig(kind=kind, path=str(root), on_error="raise")).sources
    return FilmSet(root, films, origin=read_samples_file(root / SAMPLES_FILE))


def open_array(path: Path) -> ArrayFile:
    """Opens an npz file of one clip, reading its header alone."""
    try:
        with zipfile.ZipFile(path) as box, box.open("video.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
    except FAILURES as error:
        raise VideoError(
            f"{path}: must hold `video`, as `latte-fast sample --format npz` writes it: {error!r}"
        ) from error
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise VideoError(f"{path}: video must be uint8 (F, H, W, 3), got {dtype} {shape}")
    return ArrayFile(Place(path), shape[0])


def read_samples_file(path: Path) -> dict[str, Any]:
    """Reads the request and the number of samples from samples.json; {} where another tool made the folder."""
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text())
        return {"request": held["request"], "count": len(held["names"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"evaluate: {path} must be what `latte-fast sample` wrote, got {error!r}") from error
