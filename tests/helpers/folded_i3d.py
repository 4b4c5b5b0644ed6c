"""I3D a second time, by other means: batch norms folded into the convolutions, each padding a copy onto a canvas.

Nothing of latte_fast computes here; the weights come under the keys of `i3d_pretrained_400.pt`. It is scripted and
called as the published TorchScript file is.
"""

import torch
from torch import Tensor, nn

BLOCKS = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")


def canvas(x: Tensor, k: list[int], s: list[int], fill: float, early: bool) -> Tensor:
    """Copies x (B, C, T, H, W) into the middle of a canvas on which windows k at strides s meet ceil(side / s) times.

    Where the border is odd, the larger part lies behind; before, if `early`.
    """
    sides: list[int] = []
    starts: list[int] = []
    for i in range(3):
        side = x.shape[2 + i]
        places = (side + s[i] - 1) // s[i]
        border = (places - 1) * s[i] + k[i] - side
        if border < 0:
            border = 0
        sides.append(side + border)
        starts.append((border + 1) // 2 if early else border // 2)
    whole = torch.full([x.shape[0], x.shape[1], sides[0], sides[1], sides[2]], fill)
    a, b, c = starts[0], starts[1], starts[2]
    whole[:, :, a : a + x.shape[2], b : b + x.shape[3], c : c + x.shape[4]] = x
    return whole


def pool(x: Tensor, k: list[int], s: list[int], early: bool) -> Tensor:
    return torch.max_pool3d(canvas(x, k, s, float("-inf"), early), k, s)


class Folded(nn.Module):
    """A convolution that holds its batch norm, and ReLU."""

    def __init__(self, state: dict[str, Tensor], name: str, stride: int = 1, early: bool = False):
        super().__init__()
        weight, about = state[f"{name}.conv3d.weight"].double(), {}
        for part in ("weight", "bias", "running_mean", "running_var"):
            about[part] = state[f"{name}.bn.{part}"].double()
        scale = about["weight"] * torch.rsqrt(about["running_var"] + 1e-3)
        self.weight = nn.Parameter((weight * scale.view(-1, 1, 1, 1, 1)).float())
        self.bias = nn.Parameter((about["bias"] - about["running_mean"] * scale).float())
        self.k, self.s, self.early = [int(weight.shape[-1])] * 3, [stride] * 3, early

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv3d(canvas(x, self.k, self.s, 0.0, self.early), self.weight, self.bias, self.s).clamp(min=0)


class Mixed(nn.Module):
    def __init__(self, state: dict[str, Tensor], name: str, early: bool):
        super().__init__()
        parts = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
        made = [Folded(state, f"Mixed_{name}.{part}", early=early) for part in parts]
        self.one, self.two = made[0], nn.Sequential(*made[1:3])
        self.three, self.four, self.early = nn.Sequential(*made[3:5]), made[5], early

    def forward(self, x: Tensor) -> Tensor:
        around = pool(x, [3, 3, 3], [1, 1, 1], self.early)
        return torch.cat((self.one(x), self.two(x), self.three(x), self.four(around)), dim=1)


class FoldedI3D(nn.Module):
    """Logits (B, 400) of uint8 x (B, 3, T, H, W); `early` puts odd borders on the wrong side."""

    def __init__(self, state: dict[str, Tensor], early: bool = False):
        super().__init__()
        self.first = Folded(state, "Conv3d_1a_7x7", 2, early)
        self.second = nn.Sequential(Folded(state, "Conv3d_2b_1x1"), Folded(state, "Conv3d_2c_3x3", early=early))
        made = [Mixed(state, name, early) for name in BLOCKS]
        self.threes, self.fours, self.fives = (nn.Sequential(*made[a:b]) for a, b in ((0, 2), (2, 7), (7, 9)))
        self.last = nn.Parameter(state["logits.conv3d.weight"].flatten(1).clone())
        self.last_bias = nn.Parameter(state["logits.conv3d.bias"].clone())
        self.early = early

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert rescale and resize and return_features
        y = nn.functional.interpolate(x.to(torch.float32), [x.shape[2], 224, 224], mode="trilinear")
        y = pool(self.first(y * (2 / 255) - 1), [1, 3, 3], [1, 2, 2], self.early)
        y = pool(self.second(y), [1, 3, 3], [1, 2, 2], self.early)
        y = pool(self.threes(y), [3, 3, 3], [2, 2, 2], self.early)
        y = pool(self.fours(y), [2, 2, 2], [2, 2, 2], self.early)
        frames = self.fives(y).mean([3, 4])  # (B, 1024, T / 8)
        pairs = (frames[:, :, 1:] + frames[:, :, :-1]) / 2
        return pairs.mean(2) @ self.last.t() + self.last_bias
