"""Embeds patches, time steps, labels and positions into width D, with upstream's parameter names."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latte_fast.modules.linear import is_plain, weight_of


def sincos(width: int, positions: Tensor) -> Tensor:
    """Encodes positions (M,) as (M, width): [sin | cos] of position * 10000^(-2k / width), in float64, then fp32."""
    rates = 10000.0 ** (torch.arange(width // 2, dtype=torch.float64, device=positions.device) / (-width / 2))
    angles = positions.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def time_table(width: int, frames: int, device: torch.device | None = None) -> Tensor:
    """Returns the sin-cos positions of F frames, (1, F, D)."""
    return sincos(width, torch.arange(frames, device=device))[None]


def space_table(
    width: int, rows: int, columns: int, device: torch.device | None = None, grid: int = 0, scale: float = 1.0
) -> Tensor:
    """Returns sin-cos positions (1, N, D): the first half of D encodes the column, the second the row.

    A nonzero grid stretches both axes to positions from 0 to grid / scale, whatever rows and columns are.
    """
    row, column = (torch.arange(n, device=device) for n in (rows, columns))
    if grid:
        # upstream's order of fp32 roundings
        row, column = row.float() / (rows / grid) / scale, column.float() / (columns / grid) / scale
    by_row = sincos(width // 2, row)[:, None].expand(rows, columns, -1)
    by_column = sincos(width // 2, column)[None].expand(rows, columns, -1)
    return torch.cat([by_column, by_row], dim=-1).reshape(1, rows * columns, width)


def rope_tables(frames: int, width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Returns (cos, sin), each (F, K/2) fp32: the angle of pair i at frame f is f * 10000^(-2i / K)."""
    rates = 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64, device=device) / -width)
    angles = torch.arange(frames, dtype=torch.float64, device=device)[:, None] * rates
    return angles.cos().float(), angles.sin().float()


def stretch_time(table: Tensor, frames: int) -> Tensor:
    """Interpolates a (1, F, D) table linearly to another number of frames, keeping its ends."""
    wide = F.interpolate(table.float().transpose(1, 2), size=frames, mode="linear", align_corners=True)
    return wide.transpose(1, 2).to(table.dtype)


def stretch_space(table: Tensor, rows: int, columns: int) -> Tensor:
    """Interpolates a square (1, N, D) table bicubically to a grid of rows x columns."""
    side = math.isqrt(table.shape[1])
    grid = rearrange(table.float(), "1 (r c) d -> 1 d r c", r=side)
    grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    return rearrange(grid, "1 d r c -> 1 (r c) d").to(table.dtype)


class PatchEmbed(nn.Module):
    """The strided convolution as one GEMM over unfolded patches; `proj` keeps the convolution's parameters.

    Patches are P x P of one frame, or s x P x P tubelets of s frames with a 3-D convolution's weight.
    """

    def __init__(self, patch: int, channels: int, width: int, frames: int = 1):
        super().__init__()
        if frames == 1:
            self.proj: nn.Module = nn.Conv2d(channels, width, patch, stride=patch)
        else:
            self.proj = nn.Conv3d(channels, width, (frames, patch, patch), stride=(frames, patch, patch))

    def forward(self, x: Tensor) -> Tensor:
        if is_plain(self.proj, nn.Conv2d) or is_plain(self.proj, nn.Conv3d):
            return embed_patches(x, self.proj)
        return called_on_patches(x, self.proj, weight_of(self.proj).dim() == 5)


def called_on_patches(x: Tensor, proj: nn.Module, tubes: bool = False) -> Tensor:
    """Calls what stands in a patch embedding's convolution, on frames or on tubelets of (B, F, C, H, W)."""
    if tubes:
        return proj(x.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1).contiguous()
    return proj(x.flatten(0, 1)).flatten(2).transpose(1, 2).contiguous().unflatten(0, x.shape[:2])


def embed_patches(x: Tensor, proj: nn.Module) -> Tensor:
    """Applies a convolution whose stride is its kernel to x (B, F, C, H, W), as one GEMM -> (B, F/s, N, D)."""
    weight = proj.weight
    p, s = weight.shape[-1], weight.shape[2] if weight.dim() == 5 else 1
    rows = rearrange(x, "b (f s) c (h p) (w q) -> b f (h w) (c s p q)", s=s, p=p, q=p)
    return F.linear(rows, weight.flatten(1), proj.bias)


def timestep_wave(t: Tensor, frequencies: int = 256) -> Tensor:
    """Encodes t (...) as (..., frequencies) fp32: [cos | sin] of t * 10000^(-2k / frequencies)."""
    half = frequencies // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """[cos | sin] of t at 128 frequencies in fp32, then Linear, SiLU, Linear."""

    frequencies = 256

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        wave = timestep_wave(t, self.frequencies)
        return self.mlp(wave.to(weight_of(self.mlp[0]).dtype))  # (..., D)


class LabelEmbedder(nn.Module):
    """A table of classes; while training a label becomes the null class with probability `dropout_prob`."""

    def __init__(self, classes: int, width: int, dropout: float):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + (dropout > 0), width)
        self.num_classes = classes
        self.dropout_prob = dropout

    def forward(self, labels: Tensor, train: bool) -> Tensor:
        if train and self.dropout_prob > 0:
            drop = torch.rand(labels.shape[0], device=labels.device) < self.dropout_prob
            labels = torch.where(drop, self.num_classes, labels)
        return self.embedding_table(labels)
