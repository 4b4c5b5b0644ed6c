"""The sampling loop: a respaced diffusion process, noise by sample number, guidance."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latte_fast.diffusion import Diffusion, create_diffusion
from latte_fast.diffusion.guidance import guided
from latte_fast.diffusion.noise import StepNoise, Use, normal
from latte_fast.diffusion.process import Model
from latte_fast.runs.config import DiffusionConfig


def sampling_process(config: DiffusionConfig, steps: int, learn_sigma: bool) -> Diffusion:
    """Respaces the trained process to `steps`, at least 2: a single step would call the model on noise at t = 0."""
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
    step_keywords: Sequence[Mapping[str, Any]] = (),
    part: int = 0,
) -> Tensor:
    """Draws the samples `numbers` as (B, *shape) in fp32.

    Args:
        diffusion: process, respaced to the number of sampling steps.
        model: function called with (x, t, **condition).
        numbers: numbers of the samples; each number has noise of its own.
        shape: shape of one sample, (F, C, H, W).
        seed: seed of all noise.
        method: one of METHODS.
        scale: scale of classifier-free guidance; 1 is none, without a forward for the null condition.
        condition: keywords of the model, with B rows each.
        null: null condition for guidance, under the same keywords.
        eta: noise of DDIM's steps; 0 draws none.
        clip_denoised: whether x_0 is kept in [-1, 1], as pixels are and latents are not.
        device: device of the model.
        dtype: data type of the model's input.
        progress: whether to show a progress bar.
        step_keywords: more keywords of the model at each step, from noise to sample; none where it is empty.
        part: number of a clip among those that make up a film; each has noise of its own.
    """
    if step_keywords and len(step_keywords) != diffusion.num_timesteps:
        rule = f"one row for each of the {diffusion.num_timesteps} steps"
        raise ValueError(f"generate: step_keywords must hold {rule}, got {len(step_keywords)}")
    # every method calls the model once a step
    rows = iter(step_keywords)

    def in_dtype(x: Tensor, t: Tensor, **given: Any) -> Tensor:
        return unguided(x.to(dtype), t, **given, **next(rows, {})).float()

    unguided, model = model, in_dtype
    condition = dict(condition or {})
    if scale != 1.0 and condition:
        if null is None or set(null) != set(condition):
            raise ValueError(f"generate: null must hold {', '.join(condition)} for guidance, got {null and list(null)}")
        model = guided(in_dtype, scale)
        condition = {name: torch.cat([value, null[name]]) for name, value in condition.items()}
    noise = torch.stack([normal(seed, number, shape, Use.START, part) for number in numbers]).to(device)
    kwargs: dict[str, Any] = {}
    if method == "ddpm" or (method == "ddim" and eta):
        kwargs["draw"] = StepNoise(seed, numbers, part * diffusion.num_timesteps)
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
