"""Coherence of long films: how far a classifier's answers in a later window are from those at the start."""

import torch
from torch import Tensor

from latte_fast.evaluation.score import Score, mean_score, replicates, resampled


def class_coherence(samples: Tensor, start: Tensor | None, settings: dict[str, int]) -> Score:
    """Returns the share of films whose likeliest class (N, classes) is that of their start."""
    assert start is not None
    same = samples.argmax(1) == start.argmax(1)
    return mean_score(same.double()[:, None], settings)


def label_divergence(samples: Tensor, start: Tensor | None, settings: dict[str, int]) -> Score:
    """Returns KL(p || q) of the mean probabilities p at the films' start and q of the samples' rows (N, classes)."""
    assert start is not None

    def divergence(first: Tensor, rows: Tensor) -> float:
        p, q = first.double().mean(0), rows.double().mean(0)
        # xlogy: a class that the start rules out adds nothing
        return float((torch.xlogy(p, p) - torch.xlogy(p, q)).sum())

    again = replicates(settings, lambda draw: divergence(resampled(start, draw), resampled(samples, draw)))
    return Score(divergence(start, samples)).bounded(again)
