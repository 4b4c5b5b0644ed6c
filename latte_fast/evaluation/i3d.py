"""I3D (Carreira and Zisserman, 2017): Inception-v1 with convolutions over space and time, 400 logits of Kinetics.

The keys are those of `i3d_pretrained_400.pt`. Convolutions and poolings are padded as in TensorFlow: with zeros, so
that a side becomes ceil(side / stride), one more behind than before where the number is odd.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, CLASSES = 224, 400
# of an inception block: 1x1; 1x1 then 3x3x3; 1x1 then 3x3x3; 1x1 behind the pooling
Widths = tuple[int, int, int, int, int, int]
BLOCKS: dict[str, tuple[int, Widths]] = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
# poolings before a block: window and stride
POOLS = {"Mixed_3b": ((1, 3, 3), (1, 2, 2)), "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


def padded(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pads x (B, C, F, H, W) with zeros, as TensorFlow's SAME."""
    pads: list[int] = []
    for side, k, s in zip(x.shape[2:], window, stride, strict=True):
        more = max((math.ceil(side / s) - 1) * s + k - side, 0)
        # F.pad takes the last axis first
        pads = [more // 2, more - more // 2, *pads]
    return F.pad(x, pads)


def pooled(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(padded(x, window, stride), window, stride)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, side: int = 1, stride: int = 1, last: bool = False):
        super().__init__()
        self.window, self.stride = (side,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels, out, side, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3d(padded(x, self.window, self.stride))
        return y if self.bn is None else self.bn(y).relu()


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, channels: int, widths: Widths):
        super().__init__()
        a, b0, b1, c0, c1, d = widths
        self.b0 = Unit(channels, a)
        self.b1a, self.b1b = Unit(channels, b0), Unit(b0, b1, 3)
        self.b2a, self.b2b = Unit(channels, c0), Unit(c0, c1, 3)
        self.b3b = Unit(channels, d)

    def forward(self, x: Tensor) -> Tensor:
        pool = pooled(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pool)], 1)


class I3D(nn.Module):
    """The network, from uint8 clips to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, (channels, widths) in BLOCKS.items():
            self.add_module(name, Inception(channels, widths))
        self.logits = Unit(1024, CLASSES, last=True)

    def run(self, x: Tensor) -> Tensor:
        """Returns logits (B, 400), the mean over time, of x (B, 3, F, 224, 224) in [-1, 1]; F is at least 9."""
        x = pooled(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        for name in BLOCKS:
            if name in POOLS:
                x = pooled(x, *POOLS[name])
            x = self.get_submodule(name)(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)  # (B, 1024, F / 8 - 1, 1, 1)
        return self.logits(x).flatten(2).mean(2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, 400) of uint8 x (B, 3, F, H, W), scaled to 224x224 without antialiasing."""
        clips = x.float().movedim(1, 2).flatten(0, 1)
        if clips.shape[-2:] != (SIDE, SIDE):
            clips = F.interpolate(clips, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.run(clips.unflatten(0, (len(x), -1)).movedim(1, 2) / 127.5 - 1)
