"""Small videos and folders of pictures for tests, whose frames all differ."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from latte_fast.media.write import write_png


def moving(frames: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    """Draws uint8 (F, H, W, 3): a smooth texture that slides two pixels per frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = rng.uniform(0.05, 0.6, (3, 3, 2))
    out = np.empty((frames, height, width, 3))
    for i in range(frames):
        for c in range(3):
            phases = [a * (x + 2 * i) + b * (y + i) for a, b in waves[c]]
            out[i, :, :, c] = 127 + 40 * sum(np.sin(p) for p in phases)
    return np.clip(out, 0, 255).astype(np.uint8)


def encode(
    path: Path,
    video: np.ndarray,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Writes a video file of these frames, shown at `times` (in 1/25 s), by default one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"threads": "1", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], pix_fmt
        stream.codec_context.time_base = Fraction(1, 25)
        for i, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = times[i] if times else i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def decode(path: Path) -> np.ndarray:
    """Reads every frame of a file, from first to last."""
    with av.open(str(path)) as box:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)])


def frame_folder(folder: Path, video: np.ndarray, name: str = "{:04d}.png") -> Path:
    for i, picture in enumerate(video):
        write_png(folder / name.format(i), picture)
    return folder


def layout(kind: str, root: Path, frames: int = 12) -> Path:
    """Writes three small clips in the layout that upstream's documentation gives for this kind of set."""
    if kind == "ffs":
        for i in range(3):
            encode(root / "train" / "videos" / f"id{i}.mp4", moving(frames, 40, 32, i))
    elif kind == "ucf101":
        for i, name in enumerate(("ApplyLipstick", "Archery", "HandstandPushups")):
            encode(root / name / f"v_{name}_g01_c01.avi", moving(frames, 24, 32, i), "mpeg4")
    elif kind == "sky":
        for i in range(3):
            frame_folder(root / "X" / f"X_{i}", moving(frames, 36, 64, i), f"X_{i}_frames_{{:08d}}.png")
    elif kind == "taichi":
        for i in range(3):
            frame_folder(root / f"clip#{i}", moving(frames, 32, 32, i), "{:07d}.png")
    elif kind == "videos":
        for i, name in enumerate(("a", "b", "b")):
            encode(root / name / "deep" / f"{i}.mp4", moving(frames, 32, 48, i))
    elif kind == "frames":
        for i, name in enumerate(("a", "b", "b")):
            frame_folder(root / name / f"clip{i}", moving(frames, 32, 32, i), "{}.png")
    return root
