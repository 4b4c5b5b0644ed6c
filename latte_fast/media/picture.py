"""Pictures: read from files, cropped and scaled to the model's size."""

import os
from pathlib import Path

import av
import numpy as np
import torch
from av.video.codeccontext import VideoCodecContext
from torch import Tensor
from torch.nn import functional as F

from latte_fast.media.video import VideoError

# first bytes and decoder: a picture's format is told by its content, not by its name
MAGIC = ((b"\xff\xd8", "mjpeg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"BM", "bmp"))


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """Reads a file as uint8 (H, W, 3); raises VideoError when it does not decode."""
    try:
        data = Path(path).read_bytes()
        decoder = next((name for magic, name in MAGIC if data.startswith(magic)), None)
        if decoder is None:
            raise VideoError(f"{path}: must be a jpeg, png, webp or bmp picture, starts with {data[:4]!r}")
        codec = av.CodecContext.create(decoder, "r")
        assert isinstance(codec, VideoCodecContext)
        codec.thread_count = 1
        frames = codec.decode(av.Packet(data)) or codec.decode(None)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not frames or frames[0].is_corrupt:
        raise VideoError(f"{path}: does not decode")
    return frames[0].to_ndarray(format="rgb24")


def fit(pictures: np.ndarray, size: int) -> Tensor:
    """Crops the square at the centre and scales it with antialiasing: uint8 (n, H, W, 3) -> (n, 3, size, size).

    As the crop comes first, no scaled side is rounded: it is `size` for every H and W.
    """
    _, height, width, _ = pictures.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    x = torch.from_numpy(pictures[:, top : top + side, left : left + side]).permute(0, 3, 1, 2)
    if side != size:
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return x.contiguous()
