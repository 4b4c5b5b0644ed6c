"""latte-fast encode."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from latte_fast.cli.device import pick_device
from latte_fast.cli.endings import sentence


def encode(
    kind: Literal["videos", "ffs", "sky", "ucf101", "taichi", "frames"],
    path: Path,
    out: Path,
    vae: str,
    size: int = 256,
    flip: bool = False,
    every: int = 1,
    dtype: Literal["float16", "float32"] = "float16",
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: cuda where there is one)")] = "",
    workers: int = 2,
    shard_mb: int = 256,
    on_error: Literal["skip", "raise"] = "skip",
    index: str = "",
    resume: bool = False,
    tokens: bool = False,
) -> None:
    """Write a data set's VAE latents once, so that training needs neither the VAE nor the videos.

    The mean and std of every frame are kept, so training still draws a new start, a new posterior sample and, with
    --flip, a new mirroring in each epoch. At 256x256 a frame takes 16 KB (32 KB with --flip).

    Then train with --data.kind latents --data.path OUT.

    Example: latte-fast encode --kind ffs --path FaceForensics/videos --out ffs_latents --vae sd-vae-ft-ema --flip

    Args:
        kind: layout of the folder: videos (subfolders are classes), frames (a folder of pictures for each clip), or
            upstream's layout of FaceForensics, SkyTimelapse, UCF101, Taichi-HD. An error shows the expected layout.
        path: folder of the data set.
        out: new folder for the latents.
        vae: folder of a diffusers AutoencoderKL, a VQGAN's file or run, or identity to keep pixels.
        size: height and width in pixels after the centre crop.
        flip: also encode mirrored frames, so that training can mirror clips.
        every: encode only every n-th frame; training's interval must then be a multiple of it.
        dtype: data type of the latents on disk.
        vae_dtype: data type in which the VAE runs.
        device: device on which the VAE runs.
        workers: number of processes that decode videos.
        shard_mb: size of one file in MB; a stopped run loses at most this much.
        on_error: what to do about a video that does not decode: leave it out and name it (skip), or stop (raise).
        index: file that keeps the videos' frame times for the next run.
        resume: go on where an earlier run into the same folder stopped.
        tokens: write the tokens of a VQGAN, which `latte-fast decode` reads, instead of its latents.
    """
    # imported here because encoding loads PyAV, which --help does not need
    from latte_fast.data import encode as work
    from latte_fast.data.config import DataConfig
    from latte_fast.data.latents import LATENTS
    from latte_fast.data.tokens import TOKENS
    from latte_fast.locks import one_writer
    from latte_fast.runs.codec import open_codec

    logging.basicConfig(format="%(message)s")
    device = pick_device(device, "encode")
    try:
        config = DataConfig(kind=kind, path=str(path), flip=flip, on_error=on_error, index=index)
        with one_writer(out, "encode"):
            contents = TOKENS if tokens else LATENTS
            work.check(config, out, size, every, dtype, shard_mb, workers, resume, contents)
            network = open_codec(vae, device, getattr(torch, vae_dtype))
            written = work.encode(config, out, network, size, every, dtype, shard_mb, workers, resume, tokens)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(sentence(error, "encode")) from error
    frames = sum(row[2] for row in written["clips"]) * written.get("frame_factor", 1)
    size_mb = sum(shard[1] for shard in written["shards"]) / 1e6
    print(f"{out}: {len(written['clips'])} videos, {frames} frames, {size_mb:.1f} MB in {len(written['shards'])} files")
    if broken := written["broken"]:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        print(f"{len(broken)} videos did not decode and were left out: {', '.join(broken[:5])}{more}")
