"""The oracle's embeddings: positions, timestep, label, patches."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sincos(width: int, positions: np.ndarray) -> np.ndarray:
    """(M,) positions as (M, width): [sin | cos] of pos * 10000^(-k / (width / 2)), in float64."""
    rates = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = np.outer(positions.astype(np.float64), rates)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def space_table(width: int, rows: int, columns: int) -> Tensor:
    """(1, rows * columns, width): the first half of the width encodes the column, the second the row."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    table = np.concatenate([sincos(width // 2, column), sincos(width // 2, row)], axis=1)
    return torch.from_numpy(table).float().unsqueeze(0)


def time_table(width: int, frames: int) -> Tensor:
    """(1, frames, width)."""
    return torch.from_numpy(sincos(width, np.arange(frames))).float().unsqueeze(0)


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (B*F, N, D)


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.frequencies = frequencies

    def forward(self, t: Tensor, use_fp16: bool = False) -> Tensor:
        half = self.frequencies // 2
        rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t[:, None].float() * rates[None]
        wave = torch.cat([angles.cos(), angles.sin()], dim=-1)
        # upstream keeps fp32 unless use_fp16, so that its bf16 weights fail; here the weights decide
        return self.mlp(wave.to(torch.float16 if use_fp16 else self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, classes: int, width: int, dropout: float):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + (dropout > 0), width)
        self.num_classes = classes
        self.dropout_prob = dropout

    def forward(self, labels: Tensor, train: bool) -> Tensor:
        """While training, a label becomes the null class with the dropout's probability, one draw a label."""
        if train and self.dropout_prob > 0:
            drop = torch.rand(labels.shape[0], device=labels.device) < self.dropout_prob
            labels = torch.where(drop, self.num_classes, labels)
        return F.embedding(labels, self.embedding_table.weight)
