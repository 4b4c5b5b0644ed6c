"""Training clips from tokens on disk: read by memory map, with a new start and a new mirroring in each epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from latte_fast.codecs.clip_bpe import ClipBPE
from latte_fast.data.config import DataConfig
from latte_fast.data.index_checks import require_setting
from latte_fast.data.item import DataError, Item
from latte_fast.data.seeding import Key, draw_places, generator, long_enough, split_key
from latte_fast.data.text import caption_of
from latte_fast.data.tokens import TokenFolder


class TokenClips(Dataset):
    """Clips of tokens (t, h, w), with starts and flips as for videos, all by (seed, epoch, index).

    Args:
        config: configuration of the data, whose path is a folder that `latte-fast encode --tokens` wrote.
        frames: number of frames in a clip, counted in pixels.
        size: height and width in pixels.
    """

    texts = None

    def __init__(self, config: DataConfig, frames: int, size: int) -> None:
        folder = TokenFolder(config.path)
        where = str(folder.folder)
        require_setting("size", size, size == folder.size, f"the {folder.size} pixels of {where}")
        rule = f"{folder.every}, as in {where}, whose VQGAN merges {folder.frame_factor} frames"
        require_setting("interval", config.interval, config.interval == folder.every, rule)
        rule = f"False, as {where} was encoded without mirrored frames"
        require_setting("flip", config.flip, folder.flip or not config.flip, rule)
        rule = f"a multiple of the VQGAN's {folder.frame_factor}"
        require_setting("frames", frames, frames % folder.frame_factor == 0, rule)
        self.config, self.tokens, self.frames = config, folder, frames // folder.frame_factor
        lengths = [row[2] for row in folder.rows]
        self.kept = long_enough(lengths, self.frames, config.short, "tokens")
        self.skipped = len(lengths) - len(self.kept)
        self.classes = folder.classes
        self.n_codes, self.fingerprint = folder.n_codes, folder.fingerprint
        self.factor, self.frame_factor = folder.factor, folder.frame_factor
        self.side = size // folder.factor
        self.words: Tensor | None = None  # (clips, n), set by `give_captions`
        self.sounds: list[Tensor] = []  # (t, n) of each clip, set by `give_sounds`
        self._open: dict[int, Any] = {}

    def give_captions(self, captions: Mapping[str, str], bpe: ClipBPE, length: int) -> list[str]:
        """Gives every clip its caption's tokens, `length` of them, and returns the captions of the clips."""
        names = [self.tokens.names[number] for number in self.kept]
        found = [caption_of(name, captions) for name in names]
        lacking = [name for name, text in zip(names, found, strict=True) if text is None]
        if lacking:
            count = f"{len(lacking)} of {len(names)}"
            raise ValueError(f"text: captions must hold every clip, got none of {lacking[0]} ({count} lack one)")
        self.words = bpe.tokens(found, length)
        return found

    def give_sounds(self, folder: TokenFolder) -> None:
        """Gives every clip the tokens of its sound, which has the clip's name but for the suffix.

        A sound that ends before its film goes on with its last tokens.
        """
        rule = f"a VQGAN that merges {self.frame_factor} frames, as that of the films does"
        require_setting("sound", folder.frame_factor, folder.frame_factor == self.frame_factor, rule)
        numbers = {str(Path(name).with_suffix("")): number for number, name in enumerate(folder.names)}
        names = [self.tokens.names[number] for number in self.kept]
        found = [numbers.get(str(Path(name).with_suffix(""))) for name in names]
        lacking = [name for name, number in zip(names, found, strict=True) if number is None]
        if lacking:
            count = f"{len(lacking)} of {len(names)}"
            raise ValueError(f"tokens: sound must hold every clip, got none of {lacking[0]} ({count} lack one)")
        self.sounds = [folder.read(number).flatten(1) for number in found if number is not None]

    def __len__(self) -> int:
        return len(self.kept)

    def __getstate__(self) -> dict[str, Any]:
        # memory maps can't be pickled; each process opens its own
        return self.__dict__ | {"_open": {}}

    def __getitem__(self, key: Key) -> Item:
        epoch, index = split_key(key, len(self))
        rng = generator(self.config.seed, epoch, index, 0)
        name, label, length, shard = self.tokens.rows[self.kept[index]]
        places = draw_places(rng, length, self.frames, 1)
        suffix = "_flip" if self.config.flip and rng.random() < 0.5 else ""
        item: Item = {"tokens": self._read(name, f"{name}/tokens{suffix}", shard, places)}
        if self.classes:
            item["label"] = torch.tensor(label)
        if self.words is not None:
            item["words"] = self.words[index]
        if self.sounds:
            sound = self.sounds[index]
            item["words"] = sound[[min(place, len(sound) - 1) for place in places]].flatten()
        return item

    def _read(self, name: str, key: str, shard: int, places: list[int]) -> Tensor:
        path, first = self.tokens.shards[shard], min(places)
        try:
            if shard not in self._open:
                self._open[shard] = safe_open(path, "pt")
            # only the pages of these frames are read from the disk
            part = self._open[shard].get_slice(key)[first : max(places) + 1]
        except (SafetensorError, OSError) as error:
            raise DataError(f"tokens: {path}: {name} can't be read: {error}") from error
        tokens = part[[place - first for place in places]].long()
        low, high = int(tokens.min()), int(tokens.max())
        if tuple(tokens.shape[1:]) != (self.side, self.side) or low < 0 or high >= self.n_codes:
            rule = f"(t, {self.side}, {self.side}) in 0 .. {self.n_codes - 1}"
            raise DataError(f"tokens: {path}: {name} must be {rule}, got {tuple(tokens.shape)} in {low} .. {high}")
        return tokens
