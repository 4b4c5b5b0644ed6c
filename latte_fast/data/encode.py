"""Writes a data set's VAE latents once, as safetensors shards with an index from which a stopped run resumes."""

import hashlib
import json
import logging
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from latte_fast.codecs.vae import VAE
from latte_fast.data.config import DataConfig
from latte_fast.data.latents import LATENTS
from latte_fast.data.shards import is_full, write
from latte_fast.data.sources import Source, open_sources
from latte_fast.media.picture import fit
from latte_fast.media.pixels import normalise
from latte_fast.media.video import VideoError

log = logging.getLogger("latte_fast.data")
DTYPES = {"float16": torch.float16, "float32": torch.float32}
# frames decoded in one piece, which bounds a worker's memory at 13 MB (256x256)
PIECE = 64
Part = tuple[int, Tensor | str]


class Pieces(Dataset):
    """All frames to encode, in order and in pieces: (source number, uint8 (n, 3, S, S)), or an error in their place."""

    def __init__(self, sources: list[Source], first: int, size: int, every: int) -> None:
        self.sources, self.size = sources, size
        self.jobs: list[tuple[int, list[int]]] = []
        for number in range(first, len(sources)):
            places = list(range(0, len(sources[number]), every))
            self.jobs += [(number, places[i : i + PIECE]) for i in range(0, len(places), PIECE)]

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, job: int) -> Part:
        number, places = self.jobs[job]
        try:
            return number, fit(self.sources[number].read(places), self.size)
        except VideoError as error:
            return number, str(error)


def encode(
    config: DataConfig,
    out: Path,
    vae: VAE,
    size: int,
    every: int = 1,
    dtype: str = "float16",
    shard_mb: int = 256,
    workers: int = 0,
    resume: bool = False,
) -> dict[str, Any]:
    """Writes mean and std of every frame's latents (of the mirrored frame too, where config.flip) to folder `out`.

    Returns the index. The index on disk is updated after each shard, and `resume` goes on from it.
    """
    before = check(config, out, size, every, dtype, shard_mb, workers, resume)
    if size % vae.factor:
        raise ValueError(f"encode: size must be a multiple of the VAE's {vae.factor}, got {size}")
    found = open_sources(config)
    names = [source.place.path.relative_to(found.root).as_posix() for source in found.sources]
    digest = hashlib.sha256(json.dumps([names, [len(s) for s in found.sources]]).encode()).hexdigest()
    # a resumed run must have the same
    settings = {"version": LATENTS.version, "kind": config.kind, "size": size, "every": every, "flip": config.flip,
                "dtype": dtype, "vae": vae.name, "channels": vae.channels, "factor": vae.factor, "random": vae.random,
                "classes": found.classes, "videos": len(names), "digest": digest}  # fmt: skip
    unopened = [Path(name).relative_to(found.root).as_posix() for name in found.broken]
    index = before or settings | {"done": 0, "complete": False, "shards": [], "clips": [], "broken": unopened}
    LATENTS.check_same(index, settings, out)
    if index["complete"]:
        return index
    out.mkdir(parents=True, exist_ok=True)
    pieces = Pieces(found.sources, index["done"], size, every)
    pinned = torch.device(vae.device).type == "cuda"
    loader = DataLoader(pieces, batch_size=None, num_workers=workers, pin_memory=pinned)
    shard: dict[str, Tensor] = {}
    rows: list[list[Any]] = []
    with tqdm(total=len(names), initial=index["done"], desc="encode", unit="video", disable=None) as bar:
        for number, parts in groupby(loader, key=lambda part: part[0]):
            result = _encoded(parts, vae, config.flip, DTYPES[dtype])
            if isinstance(result, str):
                if config.on_error == "raise":
                    raise VideoError(result)
                log.warning("left out: %s", result)
                index["broken"].append(names[number])
            else:
                label = found.sources[number].place.label
                rows.append([names[number], label, len(result["mean"]), len(index["shards"])])
                shard |= {f"{names[number]}/{key}": value for key, value in result.items()}
            bar.update()
            last = number == len(names) - 1
            if last and not rows and not index["clips"]:
                raise VideoError(f"encode: none of the {len(names)} videos decodes; the last: {result}")
            if last or is_full(shard, shard_mb):
                index["clips"] += rows
                write(out, index, shard, number + 1, last)
                shard, rows = {}, []
    return index


def check(
    config: DataConfig, out: Path, size: int, every: int, dtype: str, shard_mb: int, workers: int, resume: bool
) -> dict[str, Any] | None:
    """Checks the arguments before the VAE is opened; returns the index from which `resume` goes on, or None."""
    for name, value, least in (("size", size, 1), ("every", every, 1), ("shard_mb", shard_mb, 1),
                               ("workers", workers, 0)):  # fmt: skip
        if value < least:
            raise ValueError(f"encode: {name} must be at least {least}, got {value}")
    if config.kind in ("latents", "shapes"):
        raise ValueError(f"encode: kind must be a set of videos or frames, got {config.kind}")
    if dtype not in DTYPES:
        raise ValueError(f"encode: dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    return LATENTS.begun(out, resume)


def _encoded(parts: Iterable[Part], vae: VAE, flip: bool, dtype: torch.dtype) -> dict[str, Tensor] | str:
    """Returns mean and std of one video's frames, mirrored ones too, or why the video does not decode."""
    pieces: dict[str, list[Tensor]] = {}
    reason = ""
    for _, frames in parts:
        if isinstance(frames, str):
            reason = reason or frames
            continue
        # moved as uint8, a quarter of the bytes of float32
        frames = frames.to(vae.device, non_blocking=True)
        views = {"": frames, "_flip": frames.flip(-1)} if flip else {"": frames}
        for key, picture in views.items():
            mean, std = vae.encode(normalise(picture)[None])
            pieces.setdefault("mean" + key, []).append(mean[0].to("cpu", dtype))
            if vae.random:
                pieces.setdefault("std" + key, []).append(std[0].to("cpu", dtype))
    return reason or {key: torch.cat(tensors).contiguous() for key, tensors in pieces.items()}
