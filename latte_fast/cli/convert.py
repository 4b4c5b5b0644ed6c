"""latte-fast convert."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from latte_fast.cli.endings import sentence


def convert(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    weights: Literal["ema", "model"] = "ema",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, tyro.conf.arg(help_behavior_hint="(default: as they are)")
    ] = None,
) -> None:
    """Write a model's weights in the format of upstream's scripts or of diffusers.

    A Latte with or without classes becomes a file under upstream's keys: .safetensors, or the .pt that
    upstream's scripts load. A text-to-video model becomes a folder that diffusers' LatteTransformer3DModel reads. A
    VQGAN or a token transformer becomes .safetensors, or the .ckpt that TATS's scripts load.

    Example: latte-fast convert runs/ucf ucf.safetensors

    Example: latte-fast convert runs/text latte-text --dtype bfloat16

    Args:
        source: a run's folder, one of its checkpoints, a .pt or .safetensors file, or a text-to-video model's folder.
        out: new file or folder.
        weights: the EMA of the weights (ema) or the weights themselves (model), where the source has both.
        dtype: data type of the written weights.
    """
    from latte_fast.runs.convert import convert as work

    try:
        written = work(source, out, weights, getattr(torch, dtype) if dtype else None)
    except (ValueError, OSError) as error:
        raise SystemExit(sentence(error, "convert")) from error
    files = sorted(p for p in written.rglob("*") if p.is_file()) if written.is_dir() else [written]
    print(f"{written}: {sum(f.stat().st_size for f in files) / 1e6:.1f} MB")
