"""latte-fast encode-audio."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import tyro

from latte_fast.cli.device import pick_device
from latte_fast.cli.endings import sentence


def encode_audio(
    path: Path,
    out: Path,
    vae: str,
    fps: float = 25.0,
    device: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: cuda where there is one)")] = "",
    shard_mb: int = 256,
    on_error: Literal["skip", "raise"] = "skip",
    resume: bool = False,
) -> None:
    """Write the tokens of sounds, which a token transformer is given as the condition of its films.

    A sound becomes a picture of 64 frequencies and 16 moments for each frame of its film, and these become tokens by a
    VQGAN that was trained on such pictures: latte-fast train --objective vqgan --data.kind sounds.

    Then train with --data.kind tokens --tokens.sound OUT; a sound has the name of its film, but for the suffix.

    Example: latte-fast encode-audio --path drums --out drum_sounds --vae runs/drums-stft --fps 25

    Args:
        path: folder of sounds (wav, mp3, flac, ...) or of films with sound.
        out: new folder for the tokens.
        vae: the VQGAN of sounds: a .ckpt or .safetensors file, a run's folder, or one of its checkpoints.
        fps: frames a second of the films, over the --every that they were encoded with.
        device: device on which the VQGAN runs.
        shard_mb: size of one file in MB; a stopped run loses at most this much.
        on_error: what to do about a sound that does not decode: leave it out and name it (skip), or stop (raise).
        resume: go on where an earlier run into the same folder stopped.
    """
    # imported here because encoding loads PyAV, which --help does not need
    from latte_fast.data import encode_sounds as work
    from latte_fast.data.config import DataConfig
    from latte_fast.locks import one_writer
    from latte_fast.runs.codec import open_vqgan

    logging.basicConfig(format="%(message)s")
    device = pick_device(device, "encode-audio")
    try:
        config = DataConfig(kind="sounds", path=str(path), fps=fps, on_error=on_error)
        with one_writer(out, "encode-audio"):
            work.check(config, out, shard_mb, resume)
            written = work.encode_sounds(config, out, open_vqgan(vae, device), shard_mb, resume)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(sentence(error, "encode-audio")) from error
    latents = sum(row[2] for row in written["clips"])
    seconds = latents * written["frame_factor"] / fps
    print(f"{out}: {len(written['clips'])} sounds, {seconds:.0f} s, {latents} latent frames")
    if broken := written["broken"]:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        print(f"{len(broken)} sounds did not decode and were left out: {', '.join(broken[:5])}{more}")
