"""Writes a source's samples to files, on any number of ranks: sample i is the same on whichever rank."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from latte_fast.distributed.ranks import Ranks
from latte_fast.files import atomic
from latte_fast.media import write
from latte_fast.sampling.chunks import Chunk, chunks
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import Source

# file beside the samples that holds the request and a name for each sample
NAMES = "samples.json"


def files_of(chunk: Chunk, request: Request) -> list[str]:
    """Returns the names of a chunk's files: one for each sample, or one contact sheet."""
    numbers = chunk.numbers[: chunk.wanted]
    if request.format == "png":
        return [f"{numbers[0]:06d}-{numbers[-1]:06d}.png"] if numbers else []
    return [f"{number:06d}.{request.format}" for number in numbers]


def sample_files(source: Source, request: Request, out: str | Path, ranks: Ranks, in_step: bool = False) -> None:
    """Draws and writes all samples of a request; every rank calls this.

    Args:
        source: source of the clips.
        request: how many samples to draw, and how.
        out: folder for the files, none of which may exist.
        ranks: processes that share the work.
        in_step: whether the model is sharded, so that ranks have to call it together.
    """
    out, batch = Path(out), source.batch(request)
    ranks.from_first(lambda: make_room(out, all_files(request, batch)))
    mine = chunks(request.count, batch, ranks.rank, ranks.count, in_step)
    steps = len(mine) * request.steps
    with tqdm(total=steps, desc="sample", unit="step", disable=None if ranks.first else True) as bar:
        for chunk in mine:
            videos, names = source.draw(request, chunk.numbers, bar.update)
            if chunk.wanted:
                write_chunk(out, chunk, videos[: chunk.wanted], names[: chunk.wanted], request)
    ranks.barrier()
    if ranks.first:
        write_names(out, source.notes(request), source.names(request))


def all_files(request: Request, batch: int) -> list[str]:
    """Returns the names of all files that a request writes."""
    return [*(name for chunk in chunks(request.count, batch) for name in files_of(chunk, request)), NAMES]


def write_chunk(out: Path, chunk: Chunk, videos: Tensor, names: list[str], request: Request) -> None:
    files = files_of(chunk, request)
    if request.format == "png":
        write.write_sheet(out / files[0], list(videos), names)
        return
    for file, video, name, number in zip(files, videos, names, chunk.numbers, strict=False):
        if request.format == "npz":
            with atomic(out / file) as partial, partial.open("wb") as handle:
                np.savez_compressed(handle, video=video.numpy(), name=name, number=number, seed=request.seed)
        elif request.format == "gif":
            write.write_gif(out / file, video, request.fps)
        else:
            write.write_mp4(out / file, video, request.fps)


def write_names(out: Path, request: dict[str, Any], names: list[str]) -> None:
    """Writes the request, and what each sample shows."""
    with atomic(out / NAMES) as partial:
        partial.write_text(json.dumps({"request": request, "names": names}, indent=1) + "\n")


def check_room(out: Path, names: list[str]) -> None:
    """Raises ValueError where `out` is a file, or holds one of these files already."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"sample: out must be a folder, got the file {out}")
    there = [name for name in names if (out / name).exists()]
    if there:
        raise ValueError(f"sample: out must not hold these samples yet, got {out} with {there[0]}")


def make_room(out: Path, names: list[str]) -> None:
    """Checks the folder and creates it."""
    check_room(out, names)
    out.mkdir(parents=True, exist_ok=True)
