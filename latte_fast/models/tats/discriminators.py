"""The PatchGAN discriminators of pictures and of clips."""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from latte_fast.models.tats.norm import BatchNorm

SLOPE = 0.2


class Discriminator(nn.Module):
    """Five convolutions of kernel 4 under the authors' keys; a call returns the features of each, the last its logits.

    Args:
        axes: 2 for pictures (B, C, H, W), 3 for clips (B, C, T, H, W).
        width: channels of the first convolution, doubled by each further one up to 512.
        layers: number of convolutions with a norm.
        channels: number C of channels.
    """

    def __init__(self, axes: int, width: int = 64, layers: int = 3, channels: int = 3):
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.model0 = nn.Sequential(conv(channels, width, 4, 2, 2))
        channels = width
        for i in range(1, layers + 1):
            out = min(2 * channels, 512)
            parts = conv(channels, out, 4, 2 if i < layers else 1, 2), BatchNorm(out)
            self.add_module(f"model{i}", nn.Sequential(*parts))
            channels = out
        self.add_module(f"model{layers + 1}", nn.Sequential(conv(channels, 1, 4, 1, 2)))
        self.stages = layers + 2
        self.to(memory_format=torch.channels_last if axes == 2 else torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i in range(self.stages):
            stage = getattr(self, f"model{i}")
            x = stage[0](x)
            if len(stage) > 1:
                x = normalised(x, stage[1])
            if i < self.stages - 1:
                x = leaky_relu(x, SLOPE)
            features.append(x)
        return features


def normalised(x: Tensor, norm: BatchNorm) -> Tensor:
    scale, shift = norm.affine(x)
    shape = (*scale.shape, *[1] * (x.dim() - 2))
    return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)
