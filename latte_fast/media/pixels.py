"""Conversion between pixels, uint8 0 .. 255, and model inputs, float32 in [-1, 1]."""

import torch
from torch import Tensor


def normalise(x: Tensor) -> Tensor:
    """Converts uint8 0 .. 255 to float32 -1 .. 1."""
    return x.float().div_(127.5).sub_(1)


def to_pixels(video: Tensor) -> Tensor:
    """Converts (..., F, 3, H, W) in [-1, 1] to uint8 (..., F, H, W, 3), rounded as upstream rounds."""
    return (video.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu()
