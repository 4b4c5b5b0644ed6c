"""Time steps of a training batch."""

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
) -> Tensor:
    """Draws (B,) steps in [0, steps): "uniform", or "lognormal": sigmoid(N(mean, std^2)), dense in the middle."""
    if kind == "uniform":
        return torch.randint(0, steps, (batch,), device=device, generator=generator)
    if kind == "lognormal":
        share = torch.sigmoid(mean + std * torch.randn(batch, device=device, generator=generator))
        return (share * steps).long().clamp(max=steps - 1)
    raise ValueError(f"sample_timesteps: kind must be uniform or lognormal, got {kind!r}")
