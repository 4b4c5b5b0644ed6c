"""The oracle's embeddings: positions, timestep, label, patches."""

import math

import numpy as np
import torch
from torch import Tensor, nn


def sincos(width: int, positions: np.ndarray) -> np.ndarray:
    """Encodes positions (M,) as (M, width): [sin | cos] of pos * 10000^(-k / (width / 2)), in float64."""
    rates = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = np.outer(positions.astype(np.float64), rates)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def space_table(width: int, rows: int, columns: int) -> Tensor:
    """Returns (1, rows * columns, width): the first half of the width encodes the column, the second the row."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    table = np.concatenate([sincos(width // 2, column), sincos(width // 2, row)], axis=1)
    return torch.from_numpy(table).float().unsqueeze(0)


def time_table(width: int, frames: int) -> Tensor:
    """Returns the sin-cos positions of the frames, (1, frames, width)."""
    return torch.from_numpy(sincos(width, np.arange(frames))).float().unsqueeze(0)


def rope_tables(frames: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns (cos, sin), each (frames, width / 2): the angle of pair i at frame f is f * 10000^(-2i / width)."""
    angles = np.outer(np.arange(frames, dtype=np.float64), 10000.0 ** (-np.arange(0, width, 2) / width))
    return torch.from_numpy(np.cos(angles)).float(), torch.from_numpy(np.sin(angles)).float()


class PatchEmbed(nn.Module):
    """Embeds (B, F, C, H, W) as ((B F/s), N, D) by a strided convolution: 2-D, or 3-D over s frames."""

    def __init__(self, patch: int, channels: int, width: int, frames: int = 1):
        super().__init__()
        window = (frames, patch, patch)
        conv = nn.Conv2d(channels, width, patch, stride=patch)
        self.tubes = frames > 1
        self.proj = nn.Conv3d(channels, width, window, stride=window) if self.tubes else conv

    def forward(self, x: Tensor) -> Tensor:
        if not self.tubes:
            return self.proj(x.flatten(0, 1)).flatten(2).transpose(1, 2)
        return self.proj(x.transpose(1, 2)).transpose(1, 2).flatten(0, 1).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.frequencies = frequencies

    def forward(self, t: Tensor, use_fp16: bool = False) -> Tensor:
        half = self.frequencies // 2
        rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t[..., None].float() * rates
        wave = torch.cat([angles.cos(), angles.sin()], dim=-1)
        # upstream keeps fp32 unless use_fp16, so that its bf16 weights fail; here the weights decide
        return self.mlp(wave.to(torch.float16 if use_fp16 else next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, classes: int, width: int, dropout: float):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + (dropout > 0), width)
        self.num_classes = classes
        self.dropout_prob = dropout

    def forward(self, labels: Tensor, train: bool) -> Tensor:
        """Embeds labels; in training each becomes the null class with probability dropout_prob."""
        if train and self.dropout_prob > 0:
            drop = torch.rand(labels.shape[0], device=labels.device) < self.dropout_prob
            labels = torch.where(drop, self.num_classes, labels)
        return self.embedding_table(labels)
