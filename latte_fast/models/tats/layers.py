"""Layers of the 3D-VQGAN, under the authors' names."""

import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast.models.tats.norm import Pads, norm_of, norm_silu
from latte_fast.modules.conv_transpose3d import ConvTranspose3d

Stride = tuple[int, int, int]
UNIT: Stride = (1, 1, 1)


def pads_of(kernel: int, stride: Stride) -> Pads:
    """kernel - stride on each axis, the larger half in front."""
    total = [kernel - s for s in stride]
    front, back = [p - p // 2 for p in total], [p // 2 for p in total]
    return front[0], back[0], front[1], back[1], front[2], back[2]


class Conv(nn.Module):
    """A convolution that reads what lies beyond the edge from its input, which holds it already."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: Stride = UNIT, padding: str = "replicate"):
        super().__init__()
        self.pads, self.padding = pads_of(kernel, stride), padding
        self.conv = nn.Conv3d(c_in, c_out, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def padded(self, x: Tensor) -> Tensor:
        """The convolution of an input without its border."""
        pads = self.pads
        return self.conv(F.pad(x, (*pads[4:], *pads[2:4], *pads[:2]), mode=self.padding))


class Up(nn.Module):
    """A transposed convolution that reads its input's edge beyond it; out = stride * in on each axis."""

    def __init__(self, c_in: int, c_out: int, stride: Stride):
        super().__init__()
        front = pads_of(4, stride)[::2]
        padding = tuple(3 - f * s for f, s in zip(front, stride, strict=True))
        self.stride = stride
        self.convt = ConvTranspose3d(c_in, c_out, 4, stride, padding, pad_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        size = [n * s for n, s in zip(x.shape[2:], self.stride, strict=True)]
        # where the stride is 1, three taps on one side and two on the other give one output more
        return self.convt(x)[:, :, : size[0], : size[1], : size[2]]


class ResBlock(nn.Module):
    """x + conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))), edges repeated."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.norm1, self.conv1 = norm_of(channels, norm), Conv(channels, channels, 3)
        self.norm2, self.conv2 = norm_of(channels, norm), Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(norm_silu(x, self.norm1, self.conv1.pads))
        return x + self.conv2(norm_silu(h, self.norm2, self.conv2.pads))


class Final(nn.Sequential):
    """SiLU(norm(x)), under the authors' name of the norm: 0."""

    def __init__(self, channels: int, norm: str):
        super().__init__(norm_of(channels, norm), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return norm_silu(x, self[0])
