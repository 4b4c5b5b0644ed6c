"""The sampling loop: a process of fewer steps, each sample's own noise, guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latte_fast.diffusion import Diffusion, create_diffusion
from latte_fast.diffusion.guidance import guided
from latte_fast.diffusion.noise import StepNoise, Use, normal
from latte_fast.diffusion.process import Model
from latte_fast.runs.config import DiffusionConfig


def sampling_process(config: DiffusionConfig, steps: int, learn_sigma: bool) -> Diffusion:
    """The trained process in fewer steps; alone, a step would be step 0, for which noise is a finished clip."""
    if not 2 <= steps <= config.steps:
        raise ValueError(f"sample: steps must be in [2, {config.steps}], got {steps}")
    return create_diffusion(
        str(steps),
        config.schedule,
        learn_sigma=learn_sigma,
        diffusion_steps=config.steps,
        prediction=config.prediction,
    )


def generate(
    diffusion: Diffusion,
    model: Model,
    numbers: Sequence[int],
    shape: Sequence[int],
    *,
    seed: int,
    method: str = "ddpm",
    scale: float = 1.0,
    condition: dict[str, Tensor] | None = None,
    null: dict[str, Tensor] | None = None,
    eta: float = 0.0,
    clip_denoised: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Tensor:
    """Samples `numbers` as (B, *shape) in fp32.

    Args:
        diffusion: of as many steps as wanted.
        model: called with (x, t, **condition).
        numbers: of the samples; each number's noise is its own.
        shape: of one sample, (F, C, H, W).
        seed: with which numbers are drawn.
        method: one of METHODS.
        scale: of classifier-free guidance; 1 is none, and the null condition is not computed.
        condition: keywords of the model, B rows each.
        null: the same without the condition, for guidance.
        eta: of DDIM; 0 draws no noise.
        clip_denoised: whether x_0 is kept in [-1, 1], as pixels are and latents are not.
        device: of the model.
        dtype: of the model's input.
        progress: whether to show the steps.
    """

    def in_dtype(x: Tensor, t: Tensor, **given: Any) -> Tensor:
        return unguided(x.to(dtype), t, **given).float()

    unguided, model = model, in_dtype
    condition = dict(condition or {})
    if scale != 1.0 and condition:
        if null is None or set(null) != set(condition):
            raise ValueError(f"generate: null must hold {', '.join(condition)} for guidance, got {null and list(null)}")
        model = guided(in_dtype, scale)
        condition = {name: torch.cat([value, null[name]]) for name, value in condition.items()}
    noise = torch.stack([normal(seed, number, shape, Use.START) for number in numbers]).to(device)
    kwargs: dict[str, Any] = {}
    if method == "ddpm" or (method == "ddim" and eta):
        kwargs["draw"] = StepNoise(seed, numbers)
    elif method == "ddim":
        kwargs["draw"] = torch.zeros_like
    if method == "ddim":
        kwargs["eta"] = eta
    return diffusion.sample(
        method,
        model,
        tuple(noise.shape),
        noise=noise,
        clip_denoised=clip_denoised,
        model_kwargs={name: value.to(device) for name, value in condition.items()},
        progress=progress,
        **kwargs,
    )
