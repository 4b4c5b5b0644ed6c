"""Writes the tokens of sounds once, as `encode` writes those of films: shards with an index, resumable."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_fast.codecs import spectrum
from latte_fast.codecs.vqgan import VQGANCodec
from latte_fast.data.config import DataConfig
from latte_fast.data.encode import Work, go_on, mend
from latte_fast.data.layouts import Place
from latte_fast.data.shards import Contents, remove_unlisted
from latte_fast.data.sounds import SoundFile, find_sounds
from latte_fast.data.sources import Source
from latte_fast.data.tokens import SOUND_TOKENS, stored
from latte_fast.locks import one_writer
from latte_fast.media.sound import SoundError
from latte_fast.media.video import Timeline


@dataclass(frozen=True)
class SoundWork(Work):
    """What is encoded of which sounds."""

    files: Sequence[SoundFile] = ()

    def results(self, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Tensor] | str]]:
        """Yields each sound's number and its tokens, or why it does not decode."""
        for number in numbers:
            try:
                pictures = self.files[number].pictures(self.vae.frame_factor)
            except SoundError as error:
                yield number, str(error)
                continue
            codec: Any = self.vae
            yield number, {"tokens": codec.tokens(pictures[None])[0].to(stored(codec.n_codes)).contiguous()}


def check(config: DataConfig, out: Path, shard_mb: int, resume: bool) -> dict[str, Any] | None:
    """Checks the arguments before the VQGAN is opened; returns the index from which `resume` goes on, or None."""
    if config.kind != "sounds":
        raise ValueError(f"encode-audio: kind must be sounds, got {config.kind}")
    if shard_mb < 1:
        raise ValueError(f"encode-audio: shard_mb must be at least 1, got {shard_mb}")
    contents: Contents = SOUND_TOKENS
    return contents.begun(out, resume)


def encode_sounds(
    config: DataConfig, out: Path, codec: VQGANCodec, shard_mb: int = 256, resume: bool = False
) -> dict[str, Any]:
    """Writes the tokens of all sounds below config.path, (t, h, w) for each, and returns the index.

    Args:
        config: the sounds, of kind sounds.
        out: new or empty folder, or with `resume` the folder of an earlier run.
        codec: VQGAN of sounds' pictures.
        shard_mb: size of a file in MB; the index is updated after each.
        resume: go on where an earlier run stopped.
    """
    with one_writer(out, "encode-audio"):
        before = check(config, out, shard_mb, resume)
        check_codec(codec, "encode-audio")
        files, root = find_sounds(config), Path(config.path)
        names = [file.path.relative_to(root).as_posix() for file in files]
        digest = hashlib.sha256(json.dumps([names, [file.path.stat().st_size for file in files]]).encode()).hexdigest()
        settings = {"version": SOUND_TOKENS.version, "kind": "sounds", "size": spectrum.BANDS, "every": 1,
                    "flip": False, "dtype": "float32", "vae": codec.name, "channels": codec.channels,
                    "factor": codec.factor, "random": False, "classes": [], "videos": len(names), "digest": digest,
                    "frame_factor": codec.frame_factor, "fingerprint": codec.fingerprint,
                    "n_codes": codec.n_codes, "tokens": True, "fps": config.fps}  # fmt: skip
        begun = {"done": 0, "complete": False, "shards": [], "clips": [], "broken": []}
        index: dict[str, Any] = before or settings | begun
        SOUND_TOKENS.check_same(index, settings, out)
        sources = [Source(Place(file.path), Timeline(0, None)) for file in files]
        vae: Any = codec
        work = SoundWork(sources, names, vae, spectrum.BANDS, 1, torch.float32, False, 0, True, files)
        if before is not None:
            remove_unlisted(out, index)
            mend(out, index, work)
        if not index["complete"]:
            go_on(out, index, work, shard_mb, config.on_error == "raise")
    return index


def check_codec(codec: VQGANCodec, command: str) -> None:
    """Refuses a VQGAN that is not of sounds' pictures."""
    channels = codec.network.config.channels
    if channels != 1 or spectrum.BANDS % codec.factor or spectrum.MOMENTS % codec.factor:
        rule = f"one of pictures of sound (1 channel, {spectrum.BANDS} x {spectrum.MOMENTS})"
        got = f"{codec.name} of {channels} channels, {codec.factor} pixels a code"
        raise ValueError(f"{command}: the VQGAN must be {rule}, got {got}")
