"""Training clips from videos: a random start, an exact interval, one flip; a function of (seed, epoch, index)."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from latte_fast.data import layouts
from latte_fast.data.config import DataConfig
from latte_fast.data.item import Item
from latte_fast.data.seeding import Key, draw_places, generator, long_enough, split_key
from latte_fast.data.sources import SourceSet
from latte_fast.data.text import Texts
from latte_fast.media import picture
from latte_fast.media.formats import PICTURES
from latte_fast.media.pixels import normalise
from latte_fast.media.video import VideoError

log = logging.getLogger("latte_fast.data")
# after this many broken videos in a row the data set is at fault, not a video
ATTEMPTS = 16


class Clips(Dataset):
    """Clips of a data set's videos; `skipped` counts videos too short, `broken` those that failed to decode so far."""

    def __init__(
        self,
        found: SourceSet,
        config: DataConfig,
        frames: int,
        size: int,
        images: int = 0,
        texts: Texts | None = None,
    ) -> None:
        self.config, self.frames, self.size, self.images = config, frames, size, images
        self.classes = found.classes
        span = (frames - 1) * config.interval + 1
        kept = long_enough([len(s) for s in found.sources], span, config.short, config.kind)
        self.sources = [found.sources[i] for i in kept]
        self.skipped = len(found.sources) - len(kept)
        self.texts = texts
        self.labels: list[int | None] = [source.place.label for source in self.sources]
        if texts:
            names = [source.place.path.relative_to(found.root).as_posix() for source in self.sources]
            self.labels = list(texts.numbers(names))
        self.pictures = list_pictures(config, found.classes, texts) if images and config.image_path else []
        self.unopened = len(found.broken)
        # shared with loader workers, so that only the first worker to read a broken video reports it
        self.reported = torch.zeros(len(self.sources) + len(self.pictures), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def broken(self) -> int:
        """Number of videos and pictures that did not open or decode, in this process and its loader workers."""
        return self.unopened + int(self.reported.sum())

    def __getitem__(self, key: Key) -> Item:
        epoch, index = split_key(key, len(self))
        for attempt in range(ATTEMPTS):
            rng = generator(self.config.seed, epoch, index, attempt)
            which = index if attempt == 0 else int(rng.integers(len(self)))
            try:
                return self._item(which, rng)
            except VideoError as error:
                if self.config.on_error == "raise":
                    raise
                last = error
        raise VideoError(f"{self.config.kind}: {ATTEMPTS} videos in a row do not decode; the last: {last}")

    def _item(self, which: int, rng: np.random.Generator) -> Item:
        source = self.sources[which]
        places = draw_places(rng, len(source), self.frames, self.config.interval)
        mirrored = self.config.flip and rng.random() < 0.5
        parts = [self._read(which, places, mirrored)]
        labels = []
        for _ in range(self.images):
            part, label = self._picture(rng)
            parts.append(part)
            labels.append(label)
        item: Item = {"video": normalise(torch.cat(parts) if self.images else parts[0])}
        if self.labels[which] is not None:
            item["label"] = torch.tensor(self.labels[which])
            if self.images:
                item["image_labels"] = torch.tensor(labels)
        return item

    def _read(self, which: int, places: list[int], mirrored: bool) -> Tensor:
        try:
            frames = picture.fit(self.sources[which].read(places), self.size)
        except VideoError as error:
            self._report(which, error)
            raise
        return frames.flip(-1) if mirrored else frames

    def _picture(self, rng: np.random.Generator) -> tuple[Tensor, int | None]:
        """Reads a picture for joint training, listed or a frame of any clip: uint8 (1, 3, size, size) and its label."""
        mirrored = self.config.flip and rng.random() < 0.5
        if not self.pictures:
            which = int(rng.integers(len(self.sources)))
            source = self.sources[which]
            return self._read(which, [int(rng.integers(len(source)))], mirrored), self.labels[which]
        which = int(rng.integers(len(self.pictures)))
        path, label = self.pictures[which]
        try:
            frames = picture.fit(picture.read_picture(path)[None], self.size)
        except VideoError as error:
            self._report(len(self.sources) + which, error)
            raise
        return frames.flip(-1) if mirrored else frames, label

    def _report(self, which: int, error: VideoError) -> None:
        if not self.reported[which]:
            self.reported[which] = 1
            log.warning("does not decode: %s", error)


def list_pictures(config: DataConfig, classes: list[str], texts: Texts | None = None) -> list[tuple[Path, int | None]]:
    """Returns pictures for joint training and their labels: those in image_list, or all below image_path."""
    root = Path(config.image_path)
    if not root.is_dir():
        raise layouts.LayoutError(f"data: image_path must be a folder of pictures, got {root}, which is no folder")
    if config.image_list:
        listing = Path(config.image_list)
        if not listing.is_file():
            raise layouts.LayoutError(f"data: image_list must be a text file of pictures, got {listing}, no file")
        names = [line.strip() for line in listing.read_text().splitlines() if line.strip()]
        paths = [_with_suffix(root / name) for name in names]
    else:
        paths = layouts.files(root, PICTURES)
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        got = f"{missing[0]} ({len(missing)} missing)" if missing else f"none; found {layouts.summary(root)}"
        raise layouts.LayoutError(f"data: pictures of image_list must lie below image_path {root}, got {got}")
    if texts:
        names = [path.relative_to(root).as_posix() for path in paths]
        return list(zip(paths, texts.numbers(names), strict=True))
    if not classes:
        return [(path, None) for path in paths]
    # the UCF101 archive spells HandstandPushups in folders and HandStandPushups in files
    number = {name.lower(): i for i, name in enumerate(classes)}
    found: list[tuple[Path, int | None]] = []
    for path in paths:
        first = path.relative_to(root).parts[0]
        name = first.split("_")[1] if config.kind == "ucf101" and first.count("_") else first
        if name.lower() not in number:
            raise layouts.LayoutError(
                f"data: pictures must lie in folders named after classes"
                f"{' as v_<class>_gXX_cYY' if config.kind == 'ucf101' else ''}, got {path}"
            )
        found.append((path, number[name.lower()]))
    return found


def _with_suffix(path: Path) -> Path:
    """Returns the path of a listed picture, whose line may lack the suffix (upstream's UCF101 list)."""
    if path.suffix.lower() in PICTURES:
        return path
    return next((p for s in PICTURES if (p := path.with_name(path.name + s)).is_file()), path)
