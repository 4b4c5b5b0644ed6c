"""latte-fast encode-text."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from latte_fast.cli.device import pick_device
from latte_fast.cli.endings import sentence


def encode_text(
    captions: Path,
    pretrained: Path,
    out: Path,
    dtype: Literal["float16", "float32"] = "float16",
    encoder_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: cuda where there is one)")] = "",
    batch: int = 16,
    shard_mb: int = 256,
    resume: bool = False,
) -> None:
    """Embed a data set's captions once, so that text-to-video training needs no text encoder.

    The captions are a JSON object of texts by clip: {"birds/0001.mp4": "a heron takes off", ...}. A clip is named by
    its path below the set's folder, with or without the suffix, or by a folder above it, whose clips then share the
    caption; clips of --kind shapes are named by their class ("circle up").

    Then train with --data.text OUT. A caption of 20 tokens takes 160 KB with T5-XXL.

    Example: latte-fast encode-text --captions captions.json --pretrained Latte-1 --out texts --encoder-dtype bfloat16

    Args:
        captions: JSON file of the captions.
        pretrained: folder of a pipeline, whose tokenizer/ and text_encoder/ are used.
        out: new folder for the embeddings.
        dtype: data type of the embeddings on disk.
        encoder_dtype: data type in which the encoder runs.
        device: device on which the encoder runs.
        batch: number of captions encoded at once.
        shard_mb: size of one file in MB; a stopped run loses at most this much.
        resume: go on where an earlier run into the same folder stopped.
    """
    from latte_fast.codecs.text_encoder import open_text_encoder
    from latte_fast.data import encode_text as work
    from latte_fast.locks import one_writer

    logging.basicConfig(format="%(message)s")
    device = pick_device(device, "encode-text")
    try:
        clips = work.read_captions(captions)
        with one_writer(out, "encode-text"):
            work.check(out, dtype, batch, shard_mb, resume)
            encoder = open_text_encoder(pretrained, device, getattr(torch, encoder_dtype))
            written = work.encode_text(clips, out, encoder, dtype, batch, shard_mb, resume)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(sentence(error, "encode-text")) from error
    size_mb = sum(shard[1] for shard in written["shards"]) / 1e6
    print(f"{out}: {len(written['captions'])} captions of {len(written['clips'])} names, {size_mb:.1f} MB")
    if written["cut"]:
        print(f"{written['cut']} captions were cut after {written['tokens']} tokens")
