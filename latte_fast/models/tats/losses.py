"""The 3D-VQGAN's losses, one number a clip, on values in [-0.5, 0.5]."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast.models.tats.discriminators import Discriminator

Features = list[Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]


class Discriminators(nn.Module):
    """The discriminators of pictures and of clips, called together so that one backward serves both.

    Args:
        width: channels of the first convolutions.
        layers: number of convolutions with a norm.
        channels: channels of a clip.
    """

    def __init__(self, width: int = 64, layers: int = 3, channels: int = 3):
        super().__init__()
        self.image, self.video = (Discriminator(axes, width, layers, channels) for axes in (2, 3))

    def forward(self, made: tuple[Tensor, Tensor], true: tuple[Tensor, Tensor]) -> list[tuple[Features, Features]]:
        """Returns the features of decoded and of true pictures, then of clips; `made` and `true` are of both."""
        networks = (self.image, self.video)
        return [(net(fake), net(real)) for net, fake, real in zip(networks, made, true, strict=True)]


def per_clip(x: Tensor) -> Tensor:
    """Means of x (B, ...) over all but the batch, in fp32 at least: (B,)."""
    x = x.flatten(1)
    return (x if x.dtype == torch.float64 else x.float()).mean(1)


def frames_of(x: Tensor, numbers: Tensor) -> Tensor:
    """Returns one frame of each clip: x (B, C, T, H, W) and numbers (B,) -> (B, C, H, W)."""
    return x[torch.arange(len(x), device=x.device), :, numbers]


def generator_gan(features: Sequence[tuple[Features, Features]], weights: Sequence[float]) -> Tensor:
    """Minus the discriminators' mean logits of what was decoded."""
    return sum((-w * per_clip(made[-1]) for w, (made, _) in zip(weights, features, strict=True)), start=torch.zeros(()))


def feature_matching(features: Sequence[tuple[Features, Features]], weights: Sequence[float]) -> Tensor:
    """Mean absolute differences of all features but the logits, of every discriminator that has a weight."""
    parts = [
        per_clip((fake - real.detach()).abs()) * (4 / (len(made) - 1))
        for weight, (made, true) in zip(weights, features, strict=True)
        if weight > 0
        for fake, real in zip(made[:-1], true[:-1], strict=True)
    ]
    return sum(parts, start=torch.zeros(()))


def discriminator_gan(made: Tensor, true: Tensor, kind: Literal["hinge", "vanilla"]) -> Tensor:
    """The loss of a discriminator by its logits."""
    if kind == "hinge":
        return 0.5 * (per_clip(F.relu(1 - true)) + per_clip(F.relu(1 + made)))
    return 0.5 * (per_clip(F.softplus(-true)) + per_clip(F.softplus(made)))
