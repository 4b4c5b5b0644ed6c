"""latte-fast decode."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from latte_fast.cli.device import pick_device
from latte_fast.cli.endings import sentence


def decode(
    path: Annotated[Path, tyro.conf.Positional],
    vqgan: str,
    out: Path,
    fps: float = 8.0,
    chunk: int = 16,
    clips: tuple[str, ...] = (),
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: cuda where there is one)")] = "",
) -> None:
    """Write the films of tokens, frame by frame as they are decoded, so that a film may be of any length.

    Example: latte-fast decode sky_tokens --vqgan runs/sky-vqgan --out sky_films --fps 25

    Args:
        path: folder that `latte-fast encode --tokens` wrote.
        vqgan: the VQGAN that encoded it: a .ckpt or .safetensors file, a run's folder, or one of its checkpoints.
        out: folder for the films, one mp4 for each clip; a film that is there already is not made again.
        fps: frames a second of the films.
        chunk: number of latent frames decoded before their frames are written; films do not depend on it.
        clips: names of the clips to decode, as in the folder's index.json; by default all.
        dtype: data type in which the VQGAN runs.
        device: device on which the VQGAN runs.
    """
    # imported here because films load PyAV, which --help does not need
    from tqdm import tqdm

    from latte_fast.data.tokens import TokenFolder
    from latte_fast.locks import one_writer
    from latte_fast.media.formats import FPS
    from latte_fast.media.pixels import to_pixels
    from latte_fast.media.write import stream_mp4
    from latte_fast.models.tats.chunks import check_chunks, decode_in_chunks
    from latte_fast.runs.codec import open_vqgan

    device = pick_device(device, "decode")
    try:
        if not FPS[0] <= fps <= FPS[1]:
            raise ValueError(f"decode: fps must be from {FPS[0]} to {FPS[1]}, got {fps}")
        if chunk < 1:
            raise ValueError(f"decode: chunk must be at least 1, got {chunk}")
        if out.exists() and not out.is_dir():
            raise ValueError(f"decode: out must be a folder, got the file {out}")
        folder = TokenFolder(path)
        unknown = [name for name in clips if name not in folder.names]
        if unknown:
            raise ValueError(f"decode: clips must be among those of {path}, got {unknown[0]}")
        codec = open_vqgan(vqgan, device, getattr(torch, dtype))
        folder.check_fingerprint(codec.fingerprint, vqgan)
        check_chunks(codec.network)
        wanted = [i for i, name in enumerate(folder.names) if not clips or name in clips]
        frames = sum(folder.rows[i][2] for i in wanted) * folder.frame_factor
        bar = tqdm(total=frames, desc="decode", unit="frame", disable=None)
        with one_writer(out, "decode"), bar:
            for i in wanted:
                film = out / Path(folder.names[i]).with_suffix(".mp4")
                if film.exists():
                    bar.update(folder.rows[i][2] * folder.frame_factor)
                    continue
                tokens = folder.read(i)

                def parts(tokens: Tensor = tokens) -> Iterator[Tensor]:
                    for x in decode_in_chunks(codec.network, tokens[None], chunk):
                        yield to_pixels(x[0].movedim(0, 1))
                        bar.update(x.shape[2])

                stream_mp4(film, parts(), fps)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(sentence(error, "decode")) from error
    print(f"{out}: {len(wanted)} films, {frames} frames")
