"""Inception score: how sure a classifier is of each clip, and how different its answers are over all."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

SPLITS = 10
# seed of the order in which clips go into splits, StyleGAN-V's
ORDER = 42
# largest distance of a row's sum from 1, which half precision reaches
SUM_ERROR = 1e-2


def inception_score(probabilities: Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """Returns mean and standard deviation, over splits, of exp(mean KL(p || mean p)).

    Args:
        probabilities: class probabilities (N, classes), one row per clip.
        splits: number of parts of the shuffled clips, each with a score of its own.
    """
    check_probabilities("inception_score", probabilities)
    if not 1 <= splits <= len(probabilities):
        raise ValueError(f"inception_score: splits must be in [1, {len(probabilities)}], got {splits}")
    order = np.random.RandomState(ORDER).permutation(len(probabilities))
    p = probabilities.double()[torch.from_numpy(order).to(probabilities.device)]
    bounds = [i * len(p) // splits for i in range(splits + 1)]
    scores = torch.tensor([_score(p[a:b]) for a, b in pairwise(bounds)], dtype=torch.float64)
    return float(scores.mean()), float(scores.std(correction=0))


def _score(p: Tensor) -> float:
    # xlogy: a class that is ruled out adds nothing
    divergence = torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))
    return float(divergence.sum(1).mean().exp())


def check_probabilities(name: str, p: Tensor) -> None:
    """Raises ValueError unless p has rows of numbers that are not negative and sum to 1."""
    if p.ndim != 2 or not p.numel():
        raise ValueError(f"{name}: probabilities must be (N, classes), got {tuple(p.shape)}")
    off = (p.double().sum(1) - 1).abs().max().item()
    # written so that NaN is refused
    if not (p.min().item() >= 0 and off <= SUM_ERROR):
        row = p.double().sum(1)[0].item()
        raise ValueError(
            f"{name}: probabilities must be at least 0 and sum to 1 in each row, "
            f"got a smallest of {p.min().item():.4g} and a first row that sums to {row:.4g}"
        )
