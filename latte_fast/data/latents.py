"""Training clips from latents on disk: read by memory map, sampled anew each epoch, without VAE or videos."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from latte_fast.data.config import DataConfig
from latte_fast.data.index_checks import LATENT_FIELDS, check_latents
from latte_fast.data.item import DataError, Item
from latte_fast.data.seeding import Key, draw_places, generator, long_enough, split_key
from latte_fast.data.shards import INDEX, Contents
from latte_fast.data.text import Texts

LATENTS = Contents("latents", "encode", "videos", check_latents, LATENT_FIELDS)


class Latents(Dataset):
    """Clips of latents, mean + std * noise, with starts and flips as for videos, all by (seed, epoch, index)."""

    def __init__(self, config: DataConfig, frames: int, size: int, images: int = 0, texts: Texts | None = None) -> None:
        self.folder = Path(config.path)
        if not (self.folder / INDEX).is_file():
            raise ValueError(
                f"latents: path must be a folder that `latte-fast encode` wrote\n"
                f"  path/index.json\n  path/00000.safetensors ...\ngot {self.folder}, which has no {INDEX}"
            )
        index = LATENTS.finished(self.folder)
        self._check(index, config, size)
        check_shards(self.folder, index)
        self.frame_factor = int(index.get("frame_factor", 1))
        self._check_frames(config, frames, index["every"])
        frames //= self.frame_factor
        self.config, self.frames, self.images = config, frames, images
        self.classes: list[str] = index["classes"]
        self.channels, self.factor, self.vae = int(index["channels"]), int(index["factor"]), str(index["vae"])
        self.step = config.interval // index["every"]
        lengths = [row[2] for row in index["clips"]]
        kept = long_enough(lengths, (frames - 1) * self.step + 1, config.short, "latents")
        self.rows = [index["clips"][i] for i in kept]
        self.texts = texts
        names = [row[0] for row in self.rows]
        self.labels = texts.numbers(names) if texts else [row[1] for row in self.rows]
        self.skipped, self.broken = len(lengths) - len(kept), len(index["broken"])
        self.shards = [self.folder / name for name, *_ in index["shards"]]
        self.random: bool = index["random"]
        self._open: dict[int, Any] = {}

    def _check(self, index: dict[str, Any], config: DataConfig, size: int) -> None:
        if index["size"] != size:
            raise ValueError(f"latents: size must be the {index['size']} pixels of {self.folder}, got {size}")
        if config.interval % index["every"]:
            raise ValueError(
                f"latents: interval must be a multiple of {index['every']}, every which frame of the videos is in "
                f"{self.folder}, got {config.interval}"
            )
        if config.flip and not index["flip"]:
            raise ValueError(
                f"latents: flip must be False, {self.folder} was encoded without mirrored frames, got True"
            )
        if config.image_path:
            raise ValueError(
                f"latents: image_path must be empty, pictures are frames of the clips, got {config.image_path}"
            )

    def _check_frames(self, config: DataConfig, frames: int, every: int) -> None:
        """Checks clips of a codec that merges frames, between which no other interval can be had."""
        if frames % self.frame_factor:
            raise ValueError(f"latents: frames must be a multiple of the codec's {self.frame_factor}, got {frames}")
        if self.frame_factor > 1 and config.interval != every:
            rule = f"{every}, as in {self.folder}, whose codec merges {self.frame_factor} frames"
            raise ValueError(f"latents: interval must be {rule}, got {config.interval}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        # memory maps can't be pickled; each process opens its own
        return self.__dict__ | {"_open": {}}

    def __getitem__(self, key: Key) -> Item:
        epoch, index = split_key(key, len(self))
        rng = generator(self.config.seed, epoch, index, 0)
        places = draw_places(rng, self.rows[index][2], self.frames, self.step)
        parts = [self._read(index, places, rng)]
        labels = []
        for _ in range(self.images):
            which = int(rng.integers(len(self)))
            parts.append(self._read(which, [int(rng.integers(self.rows[which][2]))], rng))
            labels.append(self.labels[which])
        item: Item = {"latent": torch.cat(parts)}
        if self.classes or self.texts:
            item["label"] = torch.tensor(self.labels[index])
            if self.images:
                item["image_labels"] = torch.tensor(labels)
        return item

    def _read(self, which: int, places: list[int], rng: np.random.Generator) -> Tensor:
        """Reads float32 (n, C, h, w), one draw from the posterior."""
        name, _, _, shard = self.rows[which]
        suffix = "_flip" if self.config.flip and rng.random() < 0.5 else ""
        first, last = min(places), max(places)
        rows = [place - first for place in places]
        try:
            if shard not in self._open:
                self._open[shard] = safe_open(self.shards[shard], "pt")
            file = self._open[shard]
            # only the pages of these frames are read from the disk
            latent = file.get_slice(f"{name}/mean{suffix}")[first : last + 1][rows].float()
            std = file.get_slice(f"{name}/std{suffix}")[first : last + 1][rows].float() if self.random else None
        except (SafetensorError, OSError) as error:
            raise DataError(f"latents: {self.shards[shard]}: {name} can't be read: {error}") from error
        if std is not None:
            noise = torch.from_numpy(rng.standard_normal(latent.shape, np.float32))
            latent.addcmul_(std, noise)
        if not latent.isfinite().all():
            raise DataError(f"latents: {self.shards[shard]}: {name} must be finite, got others in frames {places}")
        return latent


def check_shards(folder: Path, index: dict[str, Any]) -> None:
    """Reads the header of every shard, and checks that it holds the clips that the index names, in their sizes."""
    side = index["size"] // index["factor"]
    kind = {"float16": "F16", "float32": "F32"}[index["dtype"]]
    keys = ["mean", *(["std"] if index["random"] else [])]
    keys += [f"{key}_flip" for key in keys] if index["flip"] else []
    clips: dict[int, list[tuple[str, int]]] = {}
    for name, _, frames, number in index["clips"]:
        clips.setdefault(number, []).append((name, frames))
    for number, (shard, *_) in enumerate(index["shards"]):
        path = folder / shard
        try:
            with safe_open(path, "pt") as file:
                held = {*file.keys()}
                for name, frames in clips[number]:
                    for key in (f"{name}/{key}" for key in keys):
                        if key not in held:
                            raise ValueError(f"latents: {path} must hold {key}, as {folder / INDEX} says, got none")
                        part, want = file.get_slice(key), [frames, index["channels"], side, side]
                        got = (part.get_shape(), part.get_dtype())
                        if got != (want, kind):
                            rule = f"{kind} {want}, as {folder / INDEX} says"
                            raise ValueError(f"latents: {path}: {key} must be {rule}, got {got[1]} {got[0]}")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"latents: {path} can't be read: {error}") from error
