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
    pipeline: bool = False,
    vae: Path | None = None,
) -> None:
    """Write a model's weights in the format of upstream's scripts or of diffusers.

    A Latte with or without classes becomes a file under upstream's keys: .safetensors, or the .pt that
    upstream's scripts load. A text-to-video model becomes a folder that diffusers' LatteTransformer3DModel reads. A
    VQGAN or a token transformer becomes .safetensors, or the .ckpt that TATS's scripts load.

    Example: latte-fast convert runs/ucf ucf.safetensors

    With --pipeline a Latte becomes the folder of a LatteClassPipeline, which runs on diffusers' schedulers.

    Example: latte-fast convert runs/text latte-text --dtype bfloat16

    Example: latte-fast convert runs/ucf ucf-pipeline --pipeline --vae sd-vae

    Args:
        source: a run's folder, one of its checkpoints, a .pt or .safetensors file, or a text-to-video model's folder.
        out: new file or folder.
        weights: the EMA of the weights (ema) or the weights themselves (model), where the source has both.
        dtype: data type of the written weights.
        pipeline: whether to write a pipeline's folder for diffusers, of a model with or without classes.
        vae: folder of the pipeline's AutoencoderKL; by default that of the run.
    """
    from latte_fast.runs.convert import convert as work

    kind = getattr(torch, dtype) if dtype else None
    if vae is not None and not pipeline:
        raise SystemExit(f"convert: --vae must be left out without --pipeline, got {vae}")
    try:
        written = _pipeline(source, out, weights, kind, vae) if pipeline else work(source, out, weights, kind)
    except (ValueError, OSError) as error:
        raise SystemExit(sentence(error, "convert")) from error
    files = sorted(p for p in written.rglob("*") if p.is_file()) if written.is_dir() else [written]
    print(f"{written}: {sum(f.stat().st_size for f in files) / 1e6:.1f} MB")


def _pipeline(source: Path, out: Path, weights: str, dtype: torch.dtype | None, vae: Path | None) -> Path:
    """Writes a pipeline's folder, which must not exist."""
    try:
        from latte_fast.integrations.diffusers import save_pipeline
    except ImportError as error:
        raise ValueError(f"convert: --pipeline needs diffusers: {error}") from None
    from latte_fast.locks import one_writer_of
    from latte_fast.runs.load import load

    with one_writer_of(out, "convert"):
        if out.exists():
            raise ValueError(f"convert: out must not exist, got {out}")
        save_pipeline(load(source, weights), out, vae, dtype)
    return out
