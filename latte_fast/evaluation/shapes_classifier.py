"""A small classifier of moving shapes, which tells whether samples show the class that was asked for."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from latte_fast.data.shapes import CLASSES, clip
from latte_fast.media.pixels import normalise


class Recogniser(nn.Module):
    """Classifies video (B, F, 3, H, W) in [-1, 1] -> (B, classes); frames are channels, so that motion is local."""

    def __init__(self, frames: int, classes: int = len(CLASSES)):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3 * frames, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 48, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(48, 64, 3, padding=1, stride=2),
            nn.SiLU(),
        )
        self.head = nn.Linear(2 * 64, classes)

    def embed(self, video: Tensor) -> Tensor:
        """Returns features (B, 128), which the head classifies."""
        z = self.features(video.flatten(1, 2))  # (B, 64, H/4, W/4)
        return torch.cat([z.mean((2, 3)), z.amax((2, 3))], dim=1)

    def forward(self, video: Tensor) -> Tensor:
        return self.head(self.embed(video))


def shapes_batch(labels: Tensor, seeds: Tensor, frames: int, size: int, endless: bool = False) -> Tensor:
    """Draws clips in [-1, 1] of `labels`, numbers in data.shapes.CLASSES, each by its seed."""
    pairs = zip(labels.tolist(), seeds.tolist(), strict=True)
    return normalise(torch.stack([clip(label, seed, frames, size, endless) for label, seed in pairs]))


def train_recogniser(
    frames: int,
    size: int,
    classes: Sequence[int] = range(len(CLASSES)),
    steps: int = 400,
    batch: int = 48,
    seed: int = 0,
    progress: bool = False,
    endless: bool = False,
) -> tuple[Recogniser, float]:
    """Trains a classifier of `classes`, numbered in order; returns it and its accuracy on 20 unseen clips of each."""
    known = torch.tensor(list(classes))
    source = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Recogniser(frames, len(known))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    for step in tqdm(range(steps), desc="classifier", disable=not progress):
        labels = torch.randint(len(known), (batch,), generator=source)
        seeds = torch.randint(1 << 30, (batch,), generator=source)
        video = shapes_batch(known[labels], seeds, frames, size, endless)
        # samples are never as clean as the clips
        video += 0.1 * torch.randn(video.shape, generator=source)
        cross_entropy(model(video), labels).backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    labels = torch.arange(len(known)).repeat(20)
    unseen = shapes_batch(known[labels], (1 << 30) + torch.arange(len(labels)), frames, size, endless)
    return model.eval(), share_recognised(model, unseen, labels)


@torch.no_grad()
def film_features(model: Recogniser, films: Tensor, frames: int) -> Tensor:
    """Returns the features of the clips of films, uint8 (B, F, H, W, 3), one after the other: (B, F / frames, 128)."""
    clips = normalise(films.movedim(-1, -3)).unflatten(1, (-1, frames))  # (B, n, f, 3, H, W)
    return torch.stack([model.embed(film) for film in clips])


@torch.no_grad()
def recognised_clips(model: Recogniser, features: Tensor, labels: Tensor) -> Tensor:
    """Returns which clips of films show the film's label (B,), by their features: (B, n)."""
    return model.head(features).argmax(2) == labels[:, None]


@torch.no_grad()
def share_recognised(model: Recogniser, video: Tensor, labels: Tensor) -> float:
    """Returns the share of clips that are classified right."""
    return (model(video).argmax(1) == labels).float().mean().item()
