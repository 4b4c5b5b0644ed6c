"""Checks of what a 3D-VQGAN is given, before work starts."""

import torch
from torch import Tensor

from latte_fast.models.tats.config import VQGANConfig
from latte_fast.ops.checks import check_tensor


def check_clip(x: Tensor, config: VQGANConfig, device: torch.device) -> None:
    check_tensor("VQGAN", "x", x)
    if x.dim() != 5 or x.shape[1] != config.channels or not x.numel():
        raise ValueError(f"VQGAN: x must be (B, {config.channels}, T, H, W), got {tuple(x.shape)}")
    _check_device("x", x, device)
    for name, size, factor in zip(("frames", "height", "width"), x.shape[2:], config.downsample, strict=True):
        if size % factor:
            raise ValueError(f"VQGAN: {name} must be a multiple of the downsampling's {factor}, got {size}")


def _check_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"VQGAN: {name} must be on the weights' device {device}, got {x.device}")


def check_range(x: Tensor) -> None:
    """Refuses pixels outside [-1, 1]; a compiled graph does not look."""
    if torch.compiler.is_compiling():
        return
    low, high = torch.aminmax(x.detach())
    # decoded films are rounded to a pixel, which a codec's scaling may lie a little beyond
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"VQGAN: x must be in [-1, 1], got values in [{low.item():.4g}, {high.item():.4g}]")


def check_indices(indices: Tensor, config: VQGANConfig, device: torch.device) -> None:
    if not isinstance(indices, Tensor) or indices.layout != torch.strided:
        got = indices.layout if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"VQGAN: indices must be a dense tensor, got {got}")
    if indices.dim() != 4 or not indices.numel() or indices.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"VQGAN: indices must be (B, t, h, w) int64, got {tuple(indices.shape)} {str(indices.dtype)[6:]}"
        )
    _check_device("indices", indices, device)
    if torch.compiler.is_compiling():
        return
    low, high = torch.aminmax(indices)
    if low < 0 or high >= config.n_codes:
        raise ValueError(f"VQGAN: indices must be in 0 .. {config.n_codes - 1}, got {low.item()} .. {high.item()}")
