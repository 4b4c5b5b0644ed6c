"""Embeds a data set's captions once, as safetensors shards with an index from which a stopped run resumes."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from latte_fast.codecs.text_encoder import TextEncoder
from latte_fast.data.encode import DTYPES
from latte_fast.data.shards import damaged, is_full, remove_unlisted, write, write_index, write_shard
from latte_fast.data.text import NULL, TEXT
from latte_fast.files import atomic, sha256_of
from latte_fast.locks import one_writer

log = logging.getLogger("latte_fast.data")
# number of cut captions that the log shows; the rest are counted
NAMED = 5
# largest relative change of the empty caption's embedding when resuming; rounding to float16 is half of this
SAME = 1e-3


def read_captions(path: str | Path) -> dict[str, str]:
    """Reads a JSON object of captions by clip, named by a path with or without suffix, or by a folder above."""
    path = Path(path)
    rule = '{"clip.mp4": "what it shows", ...}'
    if not path.is_file():
        raise ValueError(f"encode-text: captions must be a JSON file {rule}, got {path}, which is no file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"encode-text: captions must be a JSON file {rule}, got {path}: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"encode-text: captions must be a JSON object {rule}, got {path} with {content!r:.60}")
    wrong = next((name for name, caption in content.items() if not isinstance(caption, str) or not caption.strip()), "")
    if wrong:
        raise ValueError(f"encode-text: captions must be text, got {content[wrong]!r} of {wrong} in {path}")
    for name, caption in content.items():
        try:
            caption.encode()
        except UnicodeEncodeError as error:
            rule = "text of whole characters, no halves of a surrogate pair"
            raise ValueError(f"encode-text: captions must be {rule}, got {caption!r} of {name!r} in {path}") from error
    return content


def encode_text(
    clips: dict[str, str],
    out: Path,
    encoder: TextEncoder,
    dtype: str = "float16",
    batch: int = 16,
    shard_mb: int = 256,
    resume: bool = False,
) -> dict[str, Any]:
    """Writes embeddings of all captions, and of the empty one with its padding, to `out`; returns the index.

    Args:
        clips: captions by clip name; clips that share a caption share its embedding.
        out: new or empty folder, or with `resume` the folder of an earlier run.
        encoder: text encoder.
        dtype: data type on disk, float16 or float32.
        batch: number of captions encoded at once.
        shard_mb: size of a file in MB; the index is updated after each.
        resume: go on where an earlier run stopped.
    """
    with one_writer(out, "encode-text"):
        before = check(out, dtype, batch, shard_mb, resume)
        captions = list(dict.fromkeys(clips.values()))
        number = {caption: i for i, caption in enumerate(captions)}
        digest = hashlib.sha256(json.dumps(clips, sort_keys=True).encode()).hexdigest()
        settings = {"version": TEXT.version, "encoder": encoder.name, "channels": encoder.channels,
                    "tokens": encoder.tokens, "dtype": dtype, "digest": digest}  # fmt: skip
        begun = {"done": 0, "complete": False, "cut": 0, "firsts": [], "shards": [], "captions": captions,
                 "clips": {name: number[caption] for name, caption in clips.items()}}  # fmt: skip
        index: dict[str, Any] = before or settings | begun
        TEXT.check_same(index, settings, out)
        wrong = []
        if before is not None:
            remove_unlisted(out, index)
            wrong = damaged(out, index)
            if index["complete"] and not wrong and _has_null(out, index):
                return index
        _write_all(out, index, encoder, DTYPES[dtype], batch, shard_mb, wrong)
    return index


def _write_all(
    out: Path,
    index: dict[str, Any],
    encoder: TextEncoder,
    kind: torch.dtype,
    batch: int,
    shard_mb: int,
    wrong: list[int],
) -> None:
    """Writes the empty caption and the shards that are not there yet, those numbered `wrong` first."""
    # the same captions may come in another order now, but shards and clips are numbered as in the index
    captions = index["captions"]
    null = _fitting(encoder([""])[0][0], kind, "")
    if index["shards"]:
        _check_encoder(null, out / NULL)

    def embed(first: int, end: int) -> dict[str, Tensor]:
        some = captions[first:end]
        rows = enumerate(zip(*encoder(some), strict=True), first)
        return {str(i): _fitting(text[: int(mask.sum())], kind, captions[i]) for i, (text, mask) in rows}

    ends = [*index["firsts"][1:], index["done"]]
    for number in wrong:
        first, end = index["firsts"][number], ends[number]
        parts = [embed(i, min(i + batch, end)) for i in range(first, end, batch)]
        index["shards"][number] = write_shard(out, number, {name: x for part in parts for name, x in part.items()})
        write_index(out, index)
        log.warning("made again, as it was missing or damaged: %s", out / index["shards"][number][0])
    shard: dict[str, Tensor] = {}
    start = index["done"]
    with tqdm(total=len(captions), initial=start, desc="encode-text", unit="caption", disable=None) as bar:
        for first in range(start, len(captions), batch):
            done = min(first + batch, len(captions))
            for caption in captions[first:done]:
                index["cut"] += _report(caption, encoder, index["cut"])
            shard |= embed(first, done)
            bar.update(done - first)
            if done == len(captions) or is_full(shard, shard_mb):
                if not index["shards"]:
                    with atomic(out / NULL) as partial:
                        save_file({"null": null}, partial)
                    index["null"] = sha256_of(out / NULL)
                index["firsts"].append(index["done"])
                write(out, index, shard, done, done == len(captions))
                shard = {}


def _has_null(out: Path, index: dict[str, Any]) -> bool:
    return (out / NULL).is_file() and index.get("null") in (None, sha256_of(out / NULL))


def check(out: Path, dtype: str, batch: int, shard_mb: int, resume: bool) -> dict[str, Any] | None:
    """Checks the arguments before the encoder is opened; returns the index from which `resume` goes on, or None."""
    for name, value in (("batch", batch), ("shard_mb", shard_mb)):
        if value < 1:
            raise ValueError(f"encode-text: {name} must be at least 1, got {value}")
    if dtype not in DTYPES:
        raise ValueError(f"encode-text: dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    return TEXT.begun(out, resume)


def _check_encoder(null: Tensor, path: Path) -> None:
    """Checks by the empty caption's embedding that the encoder is unchanged: folders of one name may differ."""
    try:
        before = load_file(path)["null"].float()
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"encode-text: {path} must hold the empty caption, to go on, got {error!r}") from error
    off, largest = float((null.float() - before).abs().max()), float(before.abs().max())
    if not off <= SAME * largest:
        rule = f"the one that {path} was made with, in the same dtype"
        raise ValueError(f"encode-text: pretrained must be {rule}, got one {off:.3g} of {largest:.3g} away")


def _fitting(text: Tensor, dtype: torch.dtype, caption: str) -> Tensor:
    stored = text.to(dtype).contiguous()
    if not torch.isfinite(stored).all():
        rule = f"finite in {str(dtype).removeprefix('torch.')}"
        raise ValueError(f"encode-text: the embedding of {caption!r} must be {rule}; another dtype, or encoder_dtype")
    return stored


def _report(caption: str, encoder: TextEncoder, before: int) -> int:
    """Returns 1 where a caption is cut, else 0; logs the first few."""
    surplus = encoder.surplus(caption)
    if surplus and before < NAMED:
        log.warning("cut after %d tokens, %d are left out: %.60s...", encoder.tokens, surplus, caption)
    return int(surplus > 0)
