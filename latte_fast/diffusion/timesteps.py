"""Time steps of a training batch."""

import math

import torch
from torch import Tensor


def sample_timesteps(
    kind: str,
    batch: int,
    steps: int,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    mean: float = 0.0,
    std: float = 1.0,
    within: range | None = None,
) -> Tensor:
    """Draws (B,) steps in [0, steps): "uniform", or "lognormal": sigmoid(N(mean, std^2)), dense in the middle.

    `within` draws from the same distribution, given that the step is in that range.
    """
    if kind not in ("uniform", "lognormal"):
        raise ValueError(f"sample_timesteps: kind must be uniform or lognormal, got {kind!r}")
    if kind == "uniform":
        first, end = (0, steps) if within is None else (within.start, within.stop)
        return torch.randint(first, end, (batch,), device=device, generator=generator)
    if within is None:
        share = torch.sigmoid(mean + std * torch.randn(batch, device=device, generator=generator))
        return (share * steps).long().clamp(max=steps - 1)
    least, most = (_below(edge / steps, mean, std) for edge in (within.start, within.stop))
    p = least + (most - least) * torch.rand(batch, device=device, generator=generator, dtype=torch.float64)
    share = torch.sigmoid(mean + std * torch.special.ndtri(p))
    return (share * steps).long().clamp(within.start, within.stop - 1)


def share_within(kind: str, within: range, steps: int, mean: float = 0.0, std: float = 1.0) -> float:
    """Returns the probability that sample_timesteps of this kind draws a step in a range."""
    if kind == "uniform":
        return len(within) / steps
    return _below(within.stop / steps, mean, std) - _below(within.start / steps, mean, std)


def _below(share: float, mean: float, std: float) -> float:
    """Returns the probability that sigmoid(N(mean, std^2)) is below `share`."""
    if share <= 0 or share >= 1:
        return float(share >= 1)
    return 0.5 * math.erfc(-(math.log(share / (1 - share)) - mean) / (std * math.sqrt(2)))
