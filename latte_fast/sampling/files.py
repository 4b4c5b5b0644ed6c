"""Writes a source's samples to files, on any number of ranks: sample i is the same on whichever rank."""

import json
import os
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latte_fast.distributed.ranks import Ranks
from latte_fast.files import atomic, naming
from latte_fast.locks import one_writer
from latte_fast.media import write
from latte_fast.sampling.chunks import Chunk, chunks, share
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import FilmSource, Source

# file beside the samples that holds the request and a name for each sample
NAMES = "samples.json"
# its name until all samples are there
BEGUN = ".samples.json"


def files_of(chunk: Chunk, request: Request) -> list[str]:
    """Returns the names of a chunk's files: one for each sample, or one contact sheet."""
    numbers = chunk.numbers[: chunk.wanted]
    if request.format == "png":
        return [f"{numbers[0]:06d}-{numbers[-1]:06d}.png"] if numbers else []
    return [f"{number:06d}.{request.format}" for number in numbers]


def sample_files(
    source: Source, request: Request, out: str | Path, ranks: Ranks, in_step: bool = False, resume: bool = False
) -> None:
    """Draws and writes all samples of a request; every rank calls this.

    Args:
        source: source of the clips.
        request: how many samples to draw, and how.
        out: folder for the files, none of which may exist unless `resume`.
        ranks: processes that share the work.
        in_step: whether the model is sharded, so that ranks have to call it together.
        resume: whether to go on with the same request into the same folder: files that are there are kept.
    """
    out, batch = Path(out), source.batch(request)
    with ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(one_writer(out, "sample")))
        names = all_files(request, batch)
        done = ranks.from_first(lambda: begin(out, names, contents(source, request), resume))
        every = chunks(request.count, batch)
        left = [chunk for chunk in every if not done.issuperset(files_of(chunk, request))]
        mine = share(left, ranks.team, ranks.teams, in_step)
        steps, begun = len(every) * request.calls, (len(every) - len(left)) * request.calls
        try:
            with tqdm(
                total=steps, initial=begun, desc="sample", unit="step", disable=None if ranks.first else True
            ) as bar:
                for chunk in mine:
                    if request.format == "mp4" and isinstance(source, FilmSource):
                        stream_chunk(source, out, chunk, request, bar.update)
                        continue
                    videos, shown = source.draw(request, chunk.numbers, bar.update)
                    if chunk.wanted and ranks.leads:
                        write_chunk(out, chunk, videos[: chunk.wanted], shown[: chunk.wanted], request)
        except BaseException:
            if ranks.first and not any((out / name).exists() for name in names):
                (out / BEGUN).unlink(missing_ok=True)
            raise
        ranks.barrier()
        if ranks.first and (out / BEGUN).exists():
            with naming(out / NAMES):
                os.replace(out / BEGUN, out / NAMES)


def stream_chunk(source: FilmSource, out: Path, chunk: Chunk, request: Request, tick: Callable[[int], object]) -> None:
    """Writes the films of a chunk frame by frame as they are decoded."""
    with source.films(request, chunk.numbers, out, tick) as (films, _):
        for file, film in zip(files_of(chunk, request), films, strict=False):
            write.stream_mp4(out / file, film, request.fps)


def contents(source: Source, request: Request) -> dict[str, Any]:
    """Returns what samples.json holds: the request, what each sample shows, and a digest of the weights."""
    held = {"request": source.notes(request), "names": source.names(request), "weights": digest_of(source)}
    plain: dict[str, Any] = json.loads(json.dumps(held))
    return plain


def digest_of(source: Source) -> str | None:
    """Returns a checksum of the weights that a source draws with, by which a resumed request knows its model."""
    network = getattr(source, "network", None)
    if network is None:
        return None
    digest = 0
    for name, x in network.state_dict().items():
        digest = zlib.crc32(name.encode(), digest)
        if isinstance(x, Tensor) and not x.is_meta and not hasattr(x, "full_tensor"):
            held = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest = zlib.crc32(held.data, digest)
    return f"{digest:08x}"


def begin(out: Path, names: list[str], held: dict[str, Any], resume: bool) -> set[str]:
    """Checks the folder and notes the request in it; returns the files that a resumed request finds there."""
    before = next((out / name for name in (NAMES, BEGUN) if (out / name).is_file()), None)
    done: set[str] = set()
    if resume and before is not None:
        check_same(before, held)
        done = {name for name in names if (out / name).is_file()}
        if before.name == NAMES and len(done) == len(names):
            return done
    else:
        check_room(out, names)
    with atomic(out / BEGUN) as partial:
        partial.write_text(json.dumps(held, indent=1) + "\n")
    if before is not None and before.name == NAMES:
        before.unlink()
    return done


def check_same(file: Path, held: dict[str, Any]) -> None:
    """Raises ValueError where a folder's samples are of another request."""
    try:
        before = json.loads(file.read_text())
        request = before["request"]
        changed = next((name for name, value in held["request"].items() if request.get(name) != value), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"sample: {file} must be what an earlier run wrote, to go on, got {error!r}") from error
    if changed is not None:
        rule = f"{request.get(changed)!r} as in {file}"
        raise ValueError(f"sample: {changed} must be {rule}, to go on, got {held['request'][changed]!r}")
    for name, what in (("names", "classes or captions"), ("weights", "weights")):
        if before.get(name) != held[name]:
            raise ValueError(f"sample: the model must have the same {what} as those in {file}, to go on, got others")


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


def check_room(out: Path, names: list[str]) -> None:
    """Raises ValueError where `out` is a file, or holds one of these files already."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"sample: out must be a folder, got the file {out}")
    there = [name for name in names if (out / name).exists()]
    if there:
        more = "" if (out / NAMES).exists() else "; --resume goes on with a stopped run"
        raise ValueError(f"sample: out must not hold these samples yet, got {out} with {there[0]}{more}")
