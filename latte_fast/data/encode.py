"""Writes a data set's latents or tokens once, as safetensors shards with an index from which a stopped run resumes."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from latte_fast.codecs.vae import VAE, frame_factor_of
from latte_fast.data.config import DataConfig
from latte_fast.data.encode_merged import Part, merged_latents, tokens_of
from latte_fast.data.latents import LATENTS
from latte_fast.data.shards import Contents, damaged, is_full, remove_unlisted, write, write_index, write_shard
from latte_fast.data.sources import Source, open_sources
from latte_fast.data.tokens import TOKENS
from latte_fast.data.workers import leave_signals, read_all
from latte_fast.locks import one_writer
from latte_fast.media.picture import fit
from latte_fast.media.pixels import normalise
from latte_fast.media.video import VideoError

log = logging.getLogger("latte_fast.data")
DTYPES = {"float16": torch.float16, "float32": torch.float32}
# frames decoded in one piece, which bounds a worker's memory at 13 MB (256x256)
PIECE = 64


class Pieces(Dataset):
    """All frames to encode, in order and in pieces: (source number, uint8 (n, 3, S, S)), or an error in their place."""

    def __init__(self, sources: list[Source], numbers: Sequence[int], size: int, every: int) -> None:
        self.sources, self.size = sources, size
        self.jobs: list[tuple[int, list[int]]] = []
        for number in numbers:
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
    tokens: bool = False,
) -> dict[str, Any]:
    """Writes mean and std of every frame's latents (of the mirrored frame too, where config.flip) to folder `out`.

    With `tokens`, the tokens of a VQGAN instead. Returns the index. The index on disk is updated after each shard, and
    `resume` goes on from it: shards that are missing or damaged are made again first.
    """
    with one_writer(out, "encode"):
        contents = TOKENS if tokens else LATENTS
        before = check(config, out, size, every, dtype, shard_mb, workers, resume, contents)
        if tokens and not hasattr(vae, "tokens"):
            raise ValueError(f"encode: vae must be a VQGAN to write tokens, got {vae.name}")
        if size % vae.factor:
            raise ValueError(f"encode: size must be a multiple of the VAE's {vae.factor}, got {size}")
        found = open_sources(config)
        names = [source.place.path.relative_to(found.root).as_posix() for source in found.sources]
        digest = hashlib.sha256(json.dumps([names, [len(s) for s in found.sources]]).encode()).hexdigest()
        # a resumed run must have the same
        settings = {"version": contents.version, "kind": config.kind, "size": size, "every": every, "flip": config.flip,
                    "dtype": dtype, "vae": vae.name, "channels": vae.channels, "factor": vae.factor,
                    "random": vae.random, "classes": found.classes, "videos": len(names), "digest": digest}  # fmt: skip
        if tokens or frame_factor_of(vae) > 1:
            settings |= {name: getattr(vae, name) for name in ("frame_factor", "fingerprint", "n_codes")}
            settings["tokens"] = tokens
        unopened = [Path(name).relative_to(found.root).as_posix() for name in found.broken]
        index = before or settings | {"done": 0, "complete": False, "shards": [], "clips": [], "broken": unopened}
        contents.check_same(index, settings, out)
        work = Work(found.sources, names, vae, size, every, DTYPES[dtype], config.flip, workers, tokens)
        if before is not None:
            remove_unlisted(out, index)
            mend(out, index, work)
        if not index["complete"]:
            go_on(out, index, work, shard_mb, config.on_error == "raise")
    return index


@dataclass(frozen=True)
class Work:
    """What is encoded, and how."""

    sources: list[Source]
    names: list[str]
    vae: VAE
    size: int
    every: int
    dtype: torch.dtype
    flip: bool
    workers: int
    tokens: bool = False

    def results(self, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Tensor] | str]]:
        """Yields each video's number and its tensors, or why it does not decode."""
        pieces = Pieces(self.sources, numbers, self.size, self.every)
        pinned = torch.device(self.vae.device).type == "cuda"
        leave = leave_signals if self.workers else None
        loader = DataLoader(pieces, batch_size=None, num_workers=self.workers, pin_memory=pinned, worker_init_fn=leave)
        for number, parts in groupby(read_all(loader), key=lambda part: part[0]):
            encoded = tokens_of if self.tokens else _encoded if frame_factor_of(self.vae) == 1 else merged_latents
            result = encoded(parts, self.vae, self.flip, self.dtype)
            if not isinstance(result, str) and not all(bool(x.isfinite().all()) for x in result.values()):
                rule = f"finite in {str(self.dtype).removeprefix('torch.')}, or give --dtype or --vae-dtype float32"
                raise ValueError(f"encode: the latents of {self.names[number]} must be {rule}, got others")
            yield number, result


def go_on(out: Path, index: dict[str, Any], work: Work, shard_mb: int, strict: bool) -> None:
    """Encodes the videos that are not done, shard by shard."""
    names, total = work.names, len(work.names)
    shard: dict[str, Tensor] = {}
    rows: list[list[Any]] = []
    with tqdm(total=total, initial=index["done"], desc="encode", unit="video", disable=None) as bar:
        for number, result in work.results(range(index["done"], total)):
            if isinstance(result, str):
                if strict:
                    raise VideoError(result)
                log.warning("left out: %s", result)
                index["broken"].append(names[number])
            else:
                label = work.sources[number].place.label
                rows.append([names[number], label, len(next(iter(result.values()))), len(index["shards"])])
                shard |= {f"{names[number]}/{key}": value for key, value in result.items()}
            bar.update()
            last = number == total - 1
            if last and not rows and not index["clips"]:
                raise VideoError(f"encode: none of the {total} videos decodes; the last: {result}")
            if last or is_full(shard, shard_mb):
                index["clips"] += rows
                write(out, index, shard, number + 1, last)
                shard, rows = {}, []


def mend(out: Path, index: dict[str, Any], work: Work) -> None:
    """Makes shards again that are missing or damaged."""
    number_of = {name: number for number, name in enumerate(work.names)}
    for wrong in damaged(out, index):
        numbers = [number_of[row[0]] for row in index["clips"] if row[3] == wrong]
        shard: dict[str, Tensor] = {}
        for number, result in work.results(numbers):
            if isinstance(result, str):
                raise VideoError(f"encode: {out / index['shards'][wrong][0]} can't be made again: {result}")
            shard |= {f"{work.names[number]}/{key}": value for key, value in result.items()}
        index["shards"][wrong] = write_shard(out, wrong, shard)
        write_index(out, index)
        log.warning("made again, as it was missing or damaged: %s", out / index["shards"][wrong][0])


def check(
    config: DataConfig,
    out: Path,
    size: int,
    every: int,
    dtype: str,
    shard_mb: int,
    workers: int,
    resume: bool,
    contents: Contents = LATENTS,
) -> dict[str, Any] | None:
    """Checks the arguments before the VAE is opened; returns the index from which `resume` goes on, or None."""
    for name, value, least in (("size", size, 1), ("every", every, 1), ("shard_mb", shard_mb, 1),
                               ("workers", workers, 0)):  # fmt: skip
        if value < least:
            raise ValueError(f"encode: {name} must be at least {least}, got {value}")
    if config.kind in ("latents", "tokens", "sounds", "shapes"):
        raise ValueError(f"encode: kind must be a set of videos or frames, got {config.kind}")
    if dtype not in DTYPES:
        raise ValueError(f"encode: dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    return contents.begun(out, resume)


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
