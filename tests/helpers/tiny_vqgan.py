"""Small 3D-VQGANs: ours and the oracle with the same random weights and codes that lie among the latents."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast import VQGAN, reference
from latte_fast.data import DataConfig
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.runs.config import VQGANTraining
from latte_fast.training import OptimConfig, TrainConfig

TINY: dict[str, Any] = {"n_hiddens": 4, "downsample": (2, 4, 4), "embedding_dim": 6, "n_codes": 40}


def scatter(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draws norms' weights and statistics, which a new model has at 1 and 0, and filters that keep what they see."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            last = name.split(".")[-1]
            if last in ("weight", "running_var") and x.dim() == 1:
                x.copy_(0.5 + torch.rand(x.shape, generator=generator))
            elif last in ("bias", "running_mean"):
                x.copy_(0.1 * torch.randn(x.shape, generator=generator))
            elif x.dim() == 5:
                x.copy_(torch.randn(x.shape, generator=generator) * (3 / x[0].numel()) ** 0.5)
    return model


def pair(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> tuple[VQGAN, Any]:
    """Returns ours in `dtype` and the oracle in float64, in eval mode, with codes drawn from latents."""
    torch.manual_seed(seed)
    given = TINY | changes
    ours = scatter(VQGAN(**given), seed).eval()
    oracle = reference.vqgan.VQGAN(**given)
    oracle.load_state_dict(ours.state_dict())
    oracle = oracle.double().eval()
    with torch.no_grad():
        film = clip(frames=max(8, 4 * given["downsample"][0]), seed=seed + 1)[:, : given.get("channels", 3)]
        z = oracle.latents(film.double() / 2).movedim(1, -1).flatten(0, -2)
        oracle.codebook.start(z[torch.randperm(len(z))[: given["n_codes"]]])
    ours.to(dtype).load_state_dict(oracle.state_dict())
    return ours, oracle


def clip(batch: int = 2, frames: int = 6, size: int = 16, seed: int = 0, width: int | None = None) -> Tensor:
    """Draws smooth clips (B, 3, T, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 3, frames, size, width or size, generator=generator)
    x = nn.functional.avg_pool3d(x, 3, 1, 1, count_include_pad=False)
    return (3 * (x - 0.5)).clamp(-1, 1)


MODEL = VQGANConfig(n_hiddens=2, downsample=(2, 4, 4), embedding_dim=4, n_codes=24)
RUN = VQGANTraining(model=MODEL, restart=1.0, start=2, width=2, layers=2)


def tiny_vqgan_run(out: str | Path, **changes: Any) -> TrainConfig:
    """Returns a run of a VQGAN on eleven clips whose discriminators start in the third step."""
    given: dict[str, Any] = {
        "objective": "vqgan",
        "vqgan": RUN,
        "data": DataConfig(kind="shapes", clips=11),
        "optim": OptimConfig(lr=2e-3, betas=(0.5, 0.9), clip=1.0, ema=0.9),
        "frames": 4,
        "size": 8,
        "steps": 12,
        "batch": 4,
        "log_every": 1,
        "save_every": 4,
    }
    return TrainConfig(out=str(out), **{**given, **changes})
