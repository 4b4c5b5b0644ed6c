"""Checks of what a 3D-VQGAN is given, before work starts."""

import torch
from torch import Tensor

from latte_fast.models.tats.config import VQGANConfig


def check_clip(x: Tensor, config: VQGANConfig) -> None:
    if x.dim() != 5 or x.shape[1] != 3 or not x.numel():
        raise ValueError(f"VQGAN: x must be (B, 3, T, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"VQGAN: x must be floating, in [-1, 1], got {x.dtype}")
    for name, size, factor in zip(("frames", "height", "width"), x.shape[2:], config.downsample, strict=True):
        if size % factor:
            raise ValueError(f"VQGAN: {name} must be a multiple of the downsampling's {factor}, got {size}")


def check_range(x: Tensor) -> None:
    """Refuses pixels outside [-1, 1]; a compiled graph does not look."""
    if torch.compiler.is_compiling():
        return
    low, high = torch.aminmax(x.detach())
    # decoded films are rounded to a pixel, which a codec's scaling may lie a little beyond
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"VQGAN: x must be in [-1, 1], got values in [{low.item():.4g}, {high.item():.4g}]")


def check_indices(indices: Tensor, config: VQGANConfig) -> None:
    if indices.dim() != 4 or not indices.numel() or indices.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"VQGAN: indices must be (B, t, h, w) int64, got {tuple(indices.shape)} {str(indices.dtype)[6:]}"
        )
    if torch.compiler.is_compiling():
        return
    low, high = torch.aminmax(indices)
    if low < 0 or high >= config.n_codes:
        raise ValueError(f"VQGAN: indices must be in 0 .. {config.n_codes - 1}, got {low.item()} .. {high.item()}")
