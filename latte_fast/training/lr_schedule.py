"""The learning-rate schedule."""

import math

from latte_fast.runs.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Returns the learning rate of update `step` (from 0) of `steps`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.rate == "constant":
        return config.lr
    share = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.lr * (config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * share)))
