"""The terms of the variational bound, in nats."""

import math

import torch
from torch import Tensor


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, .) || N(mean2, .)), elementwise."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation that the published losses were computed with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """log p(x) of a Gaussian over 255 bins of [-1, 1]: the decoder's term at step 0, an image's even for latents."""
    centred, inverse = x - means, torch.exp(-log_scales)
    upper = normal_cdf(inverse * (centred + 1 / 255))
    lower = normal_cdf(inverse * (centred - 1 / 255))
    inside = torch.log((upper - lower).clamp(min=1e-12))
    below = torch.log(upper.clamp(min=1e-12))
    above = torch.log((1 - lower).clamp(min=1e-12))
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))
