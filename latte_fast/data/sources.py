"""The clips of a data set, ready to read, with the frame times of videos; broken files are named."""

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from latte_fast.data import layouts
from latte_fast.data.config import DataConfig
from latte_fast.data.layouts import LayoutError, Place
from latte_fast.files import atomic
from latte_fast.media import video
from latte_fast.media.picture import read_picture
from latte_fast.media.video import Timeline, VideoError

log = logging.getLogger("latte_fast.data")
INDEX_VERSION = 1
# entries that can't be read and are named in the log; the others are counted
NAMED = 5


@dataclass(frozen=True)
class Source:
    """One clip of `len(source)` frames, any of which `read` returns."""

    place: Place
    timeline: Timeline

    def __len__(self) -> int:
        return self.timeline.frames

    def read(self, places: Sequence[int]) -> np.ndarray:
        """Reads frames as uint8 (n, H, W, 3); raises VideoError when they do not decode."""
        if not self.place.pictures:
            return video.read(self.place.path, self.timeline, places)
        found = {place: read_picture(self.place.path / self.place.pictures[place]) for place in set(places)}
        if len({picture.shape for picture in found.values()}) > 1:
            raise VideoError(f"{self.place.path}: its pictures must have one size, got several")
        return np.stack([found[place] for place in places])


@dataclass(frozen=True)
class SourceSet:
    """The clips of a data set, the names of its classes, and the files that could not be opened."""

    root: Path
    sources: list[Source]
    classes: list[str]
    broken: list[str]


def open_sources(config: DataConfig) -> SourceSet:
    """Finds a data set's clips; a file that can't be opened is left out or raised, as config.on_error says."""
    left: layouts.Left = []
    places, classes = layouts.find(config.kind, config.path, left)
    root = Path(config.path)
    unfit = [VideoError(f"{layouts.shown(path)}: {why}") for path, why in left]
    if unfit and config.on_error == "raise":
        raise unfit[0]
    for error in unfit[:NAMED]:
        log.warning("left out: %s", error)
    if len(unfit) > NAMED:
        log.warning("left out: %d more", len(unfit) - NAMED)
    if config.split:
        places = layouts.listed(places, root, Path(config.split))
    if config.index and not Path(config.index).absolute().parent.is_dir():
        raise ValueError(f"data: index must be a file in an existing folder, got {config.index}")
    results = _timelines(root, places, config.index)
    broken = [str(root / layouts.shown(path.relative_to(root))) for path, _ in left]
    broken += [str(place.path) for place, result in zip(places, results, strict=True) if isinstance(result, VideoError)]
    sources = []
    for place, result in zip(places, results, strict=True):
        if isinstance(result, Timeline):
            sources.append(Source(place, result))
        elif config.on_error == "raise":
            raise result
        else:
            log.warning("left out: %s", result)
    if not sources:
        first = next(r for r in results if isinstance(r, VideoError))
        raise LayoutError(
            f"{config.kind}: none of the {len(places)} videos in {root} can be opened; the first: {first}"
        )
    return SourceSet(root, sources, classes, broken)


def _timelines(root: Path, places: list[Place], index: str) -> list[Timeline | VideoError]:
    """Returns the timeline of each clip, from the index file where the video is unchanged; or why there is none."""
    known = _load_index(index)
    results: dict[Path, Timeline | VideoError] = {}
    stamps: dict[Path, tuple[str, int, int]] = {}
    unknown = []
    for place in places:
        if place.pictures:
            results[place.path] = Timeline(len(place.pictures), None)
            continue
        try:
            state = place.path.stat()
        except OSError as error:  # a link to nothing
            results[place.path] = VideoError(f"{place.path}: {error.strerror}")
            continue
        stamps[place.path] = stamp = (place.path.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns)
        entry = known.get(stamp[0])
        if entry is not None and entry[:2] == [*stamp[1:]]:
            results[place.path] = Timeline(entry[2], _unpack(entry[3]), _unpack(entry[4]) or ())
        else:
            unknown.append(place.path)
    # demuxing and decoding release the GIL
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counted = tqdm(
            pool.map(_scan, unknown), "reading the videos' frame times", len(unknown), False, unit="video", disable=None
        )
        results.update(zip(unknown, counted, strict=True))
    if index and unknown:
        entries = {
            stamp[0]: [*stamp[1:], line.frames, _pack(line.times), _pack(line.keys)]
            for path, stamp in stamps.items()
            if isinstance(line := results[path], Timeline)
        }
        with atomic(index) as partial:
            partial.write_text(json.dumps({"version": INDEX_VERSION, "videos": entries}))
    return [results[place.path] for place in places]


def _scan(path: Path) -> Timeline | VideoError:
    try:
        return video.scan(path)
    except VideoError as error:
        return error


def _load_index(index: str) -> dict[str, list]:
    if not index or not Path(index).exists():
        return {}
    try:
        if not Path(index).is_file():
            raise ValueError("no regular file")
        content = json.loads(Path(index).read_text())
        if content["version"] == INDEX_VERSION:
            return content["videos"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"data: index must be a file that this option made, got {index} ({error!r})") from error
    return {}


def _pack(times: Sequence[int] | None) -> dict[str, int] | list[int] | None:
    if isinstance(times, range):
        return {"start": times.start, "stop": times.stop, "step": times.step}
    return None if times is None else list(times)


def _unpack(packed: dict[str, int] | list[int] | None) -> Sequence[int] | None:
    return range(packed["start"], packed["stop"], packed["step"]) if isinstance(packed, dict) else packed
