"""Writes clips as mp4, gif or a png contact sheet, through PyAV alone; a file appears whole or not at all."""

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import torch
from torch import Tensor

from latte_fast.files import atomic
from latte_fast.media.font import text
from latte_fast.media.formats import FPS

Video = Tensor | np.ndarray
GAP = 2


def _frames(name: str, video: Video) -> np.ndarray:
    array = video.cpu().numpy() if isinstance(video, Tensor) else video
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"{name}: video must be uint8 (F, H, W, 3), got {array.dtype} {tuple(array.shape)}")
    return np.ascontiguousarray(array)


def _check(name: str, path: str | os.PathLike, suffix: str, fps: float = 1) -> None:
    if Path(path).suffix != suffix:
        raise ValueError(f"{name}: path must end in {suffix}, got {path}")
    if not FPS[0] <= fps <= FPS[1]:
        raise ValueError(f"{name}: fps must be from {FPS[0]} to {FPS[1]}, got {fps}")


def write_mp4(path: str | os.PathLike, video: Video, fps: float = 8, crf: int = 14, gop: int | None = None) -> None:
    """Writes H.264, 4:2:0, playable everywhere; an odd height or width repeats its last row or column.

    Args:
        path: file that ends in .mp4.
        video: clip, uint8 (F, H, W, 3).
        fps: frames a second.
        crf: quality, 0 is lossless and 23 is x264's default.
        gop: largest number of frames between keyframes; None is x264's 250.
    """
    stream_mp4(path, [video], fps, crf, gop)


def stream_mp4(
    path: str | os.PathLike, parts: Iterable[Video], fps: float = 8, crf: int = 14, gop: int | None = None
) -> None:
    """Writes a film as `write_mp4` does, of parts that come one after the other, none of which is kept."""
    _check("write_mp4", path, ".mp4", fps)
    # one thread: x264's output depends on their number
    options = {"crf": str(crf), "threads": "1"} | ({"g": str(gop)} if gop else {})
    with atomic(path) as partial, av.open(str(partial), "w", format="mp4") as out:
        stream: Any = None
        for part in parts:
            array = _frames("write_mp4", part)
            array = np.pad(array, ((0, 0), (0, array.shape[1] % 2), (0, array.shape[2] % 2), (0, 0)), mode="edge")
            if stream is None:
                stream = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
                stream.height, stream.width, stream.pix_fmt = array.shape[1], array.shape[2], "yuv420p"
            for picture in array:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is None:
            raise ValueError(f"write_mp4: video must have frames, got none for {path}")
        out.mux(stream.encode(None))


def write_gif(path: str | os.PathLike, video: Video, fps: float = 8) -> None:
    """Writes an endless gif with a palette made for this clip."""
    _check("write_gif", path, ".gif", fps)
    array = _frames("write_gif", video)
    rate = Fraction(fps).limit_denominator(100)
    height, width = array.shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split, palette, use = graph.add("split"), graph.add("palettegen"), graph.add("paletteuse")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for i, picture in enumerate(array):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = i, 1 / rate
        source.push(frame)
    source.push(None)
    with atomic(path) as partial, av.open(str(partial), "w", format="gif") as out:
        stream = out.add_stream("gif", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        for i in range(len(array)):
            mapped = graph.vpull()
            mapped.pts, mapped.time_base = i, 1 / rate
            out.mux(stream.encode(mapped))
        out.mux(stream.encode(None))


def write_png(path: str | os.PathLike, picture: Video) -> None:
    """Writes one uint8 (H, W, 3) picture."""
    _check("write_png", path, ".png")
    encoded = encode_png(picture)
    with atomic(path) as partial:
        partial.write_bytes(encoded)


def encode_png(picture: Video) -> bytes:
    """Returns the bytes of a PNG file of one uint8 (H, W, 3) picture."""
    array = _frames("write_png", picture[None])
    context = av.CodecContext.create("png", "w")
    context.height, context.width, context.pix_fmt = array.shape[1], array.shape[2], "rgb24"
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(array[0], format="rgb24")
    frame.pts = 0
    packets = context.encode(frame) + context.encode(None)
    return b"".join(bytes(packet) for packet in packets)


def write_sheet(path: str | os.PathLike, clips: Sequence[Video], labels: Sequence[str] = (), columns: int = 8) -> None:
    """Writes a contact sheet: a row for each clip, its label above `columns` evenly spaced frames, first to last.

    Args:
        path: file that ends in .png.
        clips: clips, uint8 (F, H, W, 3), of one height and width.
        labels: label of each clip, or none at all.
        columns: largest number of frames shown of each clip.
    """
    _check("write_sheet", path, ".png")
    arrays = [_frames("write_sheet", clip) for clip in clips]
    if not arrays or len({a.shape[1:] for a in arrays}) != 1:
        raise ValueError(f"write_sheet: clips must have one height and width, got {[a.shape for a in arrays]}")
    if labels and len(labels) != len(arrays):
        raise ValueError(f"write_sheet: labels must be one a clip, got {len(labels)} for {len(arrays)} clips")
    shown = min(columns, max(len(a) for a in arrays))
    _, height, width, _ = arrays[0].shape
    full = shown * (width + GAP) + GAP
    rows: list[np.ndarray] = []
    for i, array in enumerate(arrays):
        if labels:
            rows.append(text(labels[i], full))
        row = np.full((height + GAP, full, 3), 255, np.uint8)
        places = torch.linspace(0, len(array) - 1, shown).round().long().tolist()
        for column, place in enumerate(places):
            left = GAP + column * (width + GAP)
            row[:height, left : left + width] = array[place]
        rows.append(row)
    write_png(path, np.concatenate([np.full((GAP, full, 3), 255, np.uint8), *rows]))
