"""Clips of sound as pictures: what the VQGAN of an audio condition is trained on, and what it makes tokens of."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from latte_fast.codecs import spectrum
from latte_fast.data import layouts
from latte_fast.data.config import DataConfig
from latte_fast.data.item import Item
from latte_fast.data.seeding import Key, generator, split_key
from latte_fast.media.formats import SOUNDS, VIDEOS
from latte_fast.media.sound import read_sound


@dataclass(frozen=True)
class SoundFile:
    """A file with sound, whose pictures are `fps` a second."""

    path: Path
    fps: float

    def pictures(self, multiple: int = 1) -> Tensor:
        """Returns all pictures, (n, 1, 64, 16) in [-1, 1], n up to a multiple; raises SoundError."""
        sound, rate = read_sound(self.path)
        return spectrum.pictures(sound, rate, self.fps, spectrum.count_of(len(sound), rate, self.fps, multiple))


def find_sounds(config: DataConfig) -> list[SoundFile]:
    """Returns the files with sound below a folder, films too, in a fixed order."""
    root = Path(config.path)
    paths = layouts.files(root, (*SOUNDS, *VIDEOS)) if root.is_dir() else []
    if config.split:
        paths = [
            place.path for place in layouts.listed([layouts.Place(path) for path in paths], root, Path(config.split))
        ]
    if not paths:
        raise layouts.LayoutError(
            f"sounds: path must be a folder of sounds or films\n  path/**/*.wav\ngot {root}, "
            f"{layouts.summary(root) if root.is_dir() else 'which is no folder'}"
        )
    return [SoundFile(path, config.fps) for path in paths]


class Sounds(Dataset):
    """Clips of sounds, with starts by (seed, epoch, index); a shorter sound is followed by silence.

    Args:
        config: configuration of the data.
        frames: number of pictures in a clip.
        size: height of a picture, which is 64; its width is 16.
    """

    texts = None

    def __init__(self, config: DataConfig, frames: int, size: int) -> None:
        if size != spectrum.BANDS:
            raise ValueError(f"sounds: size must be {spectrum.BANDS}, the height of a sound's pictures, got {size}")
        if config.flip:
            raise ValueError("sounds: flip must be False, as a mirrored sound is another one, got True")
        self.config, self.frames, self.files = config, frames, find_sounds(config)
        self.classes: list[str] = []

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = split_key(key, len(self))
        found = self.files[index].pictures()
        lacking = self.frames - len(found)
        if lacking > 0:
            found = torch.cat([found, found.new_full((lacking, *found.shape[1:]), -1.0)])
        start = int(generator(self.config.seed, epoch, index, 0).integers(len(found) - self.frames + 1))
        return {"video": found[start : start + self.frames]}
