"""Small TorchScript networks that are called as the published detectors are, and sets to run them on."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers.films import frame_folder


class Motion(nn.Module):
    """Averages of two random convolutions over space and time."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(8, 3, 3, 5, 5, generator=draw) / 15)
        self.second = nn.Parameter(torch.randn(width, 8, 3, 3, 3, generator=draw) / 15)

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8 and rescale and resize and return_features
        y = torch.relu(torch.conv3d(x.float() / 127.5 - 1, self.first, stride=[1, 2, 2]))
        return torch.relu(torch.conv3d(y, self.second, stride=[1, 2, 2])).mean((2, 3, 4))


class Numbers(nn.Module):
    """Means of each frame's red and green, from which the frames of a `numbered` film can be told."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        return x[:, :2].float().mean((3, 4)).flatten(1)


class Colours(nn.Module):
    """Mean colours of single pictures."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features and x.ndim == 4
        return x.float().mean((2, 3))


class Classes(nn.Module):
    """Probabilities of three classes, by the mean colours of a clip."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.float().mean((2, 3, 4)) / 8, 1)


class Logits(nn.Module):
    """Mean colours, which are no probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3, 4))


class Flat(nn.Module):
    """One number per clip, without an axis for features."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        return x.float().mean((1, 2, 3, 4))


class Averaged(nn.Module):
    """One row for the whole batch."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        return x.float().mean((0, 2, 3, 4))[None]


class Reused(nn.Module):
    """Mean colours, returned in one buffer that each call overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.zeros(1, 3))

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        self.held.copy_(x.float().mean((2, 3, 4)))
        return self.held


class Infinite(nn.Module):
    """Features that a division by zero makes infinite."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        return 1 / (x[:, :, 0, 0, 0].float() * 0)


def saved(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        # the published files are TorchScript, whatever follows it
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(path))
    return path


def numbered(film: int, frames: int, side: int = 8) -> np.ndarray:
    """Draws uint8 (F, H, W, 3): each frame's red is its number, its green the film's, its blue 0."""
    video = np.zeros((frames, side, side, 3), np.uint8)
    video[..., 0] = np.arange(frames)[:, None, None]
    video[..., 1] = film
    return video


def numbered_set(root: Path, lengths: list[int]) -> Path:
    """Writes a set of kind frames, whose films have these lengths."""
    for film, length in enumerate(lengths):
        frame_folder(root / f"{film:03d}", numbered(film, length))
    return root


def write_arrays(root: Path, videos: list[np.ndarray]) -> Path:
    """Writes a folder as `latte-fast sample --format npz` does."""
    root.mkdir(parents=True, exist_ok=True)
    for i, video in enumerate(videos):
        np.savez_compressed(root / f"{i:06d}.npz", video=video, name=str(i), number=i, seed=0)
    request = {"count": len(videos), "seed": 0, "steps": 50}
    (root / "samples.json").write_text(json.dumps({"request": request, "names": [str(i) for i in range(len(videos))]}))
    return root
