"""Measures of pixels: PSNR and SSIM of two clips, and the flicker of one."""

import torch
from torch import Tensor
from torch.nn import functional as F

# SSIM's window, its standard deviation and its two constants, as Wang et al. (2004) set them
WINDOW, SIGMA = 11, 1.5
STEADY = (0.01**2, 0.03**2)
# what equal frames count as, whose PSNR is infinite
EQUAL = 100.0


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """-10 log10 mean (x - y)^2 of frames (F, 3, H, W) in [0, 1] -> (F,), at most 100 dB."""
    error = (x.double() - y.double()).square().mean((1, 2, 3))
    return (-10 * error.log10()).clamp(max=EQUAL)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of frames (F, 3, H, W) in [0, 1] -> (F,), the mean over all whole windows and colours."""
    if min(x.shape[-2:]) < WINDOW:
        got = "x".join(map(str, x.shape[-2:]))
        raise ValueError(f"evaluate: frames must be at least {WINDOW}x{WINDOW} pixels for ssim, got {got}")
    x, y = x.double(), y.double()
    mean_x, mean_y = _blurred(x), _blurred(y)
    # weights that sum to 1, so that these are variances about the window's own mean
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    both = _blurred(x * y) - mean_x * mean_y
    c1, c2 = STEADY
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (light * (2 * both + c2) / (var_x + var_y + c2)).mean((1, 2, 3))


def flicker(x: Tensor) -> Tensor:
    """Mean |x_{f+1} - x_f| of one clip (F, 3, H, W) in [0, 1] -> (F - 1,): how much changes from frame to frame."""
    return (x[1:].double() - x[:-1].double()).abs().mean((1, 2, 3))


def _blurred(x: Tensor) -> Tensor:
    at = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    channels = x.shape[1]
    down = weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
    across = weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    return F.conv2d(F.conv2d(x, down, groups=channels), across, groups=channels)
