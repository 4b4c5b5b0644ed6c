"""The terms of the variational bound, in nats."""

import math

import torch
from torch import Tensor


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Returns KL(N(mean1, .) || N(mean2, .)), elementwise."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def normal_cdf(x: Tensor) -> Tensor:
    """Approximates the normal distribution function by tanh, as the published losses were computed."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """Returns log p(x) of a Gaussian over an image's 255 bins of [-1, 1], for latents too (the bound at step 0)."""
    centred, inverse = x - means, torch.exp(-log_scales)
    upper = normal_cdf(inverse * (centred + 1 / 255))
    lower = normal_cdf(inverse * (centred - 1 / 255))
    inside = torch.log((upper - lower).clamp(min=1e-12))
    below = torch.log(upper.clamp(min=1e-12))
    above = torch.log((1 - lower).clamp(min=1e-12))
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))
