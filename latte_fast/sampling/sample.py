"""Clips from a trained model in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from latte_fast.codecs.vae import VAE, open_vae
from latte_fast.distributed.ranks import Ranks
from latte_fast.models.families import adapter_of
from latte_fast.runs.config import TrainConfig
from latte_fast.runs.load import Trained, load
from latte_fast.sampling.chunks import chunks
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import ModelSource, trained_source


class Samples(NamedTuple):
    """Clips and what each shows."""

    videos: Tensor  # (B, F, H, W, 3) uint8
    names: list[str]


def sample(
    model: str | Path | Trained | nn.Module,
    *,
    classes: Sequence[str | int] = (),
    samples: int | None = None,
    guidance: float | None = None,
    steps: int = 50,
    method: Literal["ddpm", "ddim", "dpm++"] = "ddim",
    eta: float = 0.0,
    frames: int | None = None,
    seed: int = 0,
    batch: int = 4,
    vae: str | Path | VAE | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    format: Literal["mp4", "gif", "png", "npz"] = "mp4",
    fps: float = 8.0,
    ranks: Ranks | None = None,
    progress: bool = True,
) -> Samples | None:
    """Draws clips from a trained model: returned as pixels, or written to the folder `out` as they are made.

    Sample i depends on the seed and i alone, whatever the batch and the number of processes.

    Args:
        model: what latte_fast.load takes or gave, or a model itself, trained by the linear schedule of 1000 steps.
        classes: names or numbers of classes or captions, in turn over the samples; none draws them by the seed.
        samples: number of samples, by default 8.
        guidance: scale of classifier-free guidance, 1 is none; by default 4, or 1 for a model without classes.
        steps: number of sampling steps.
        method: ddpm, ddim or dpm++, DPM-Solver++(2M).
        eta: noise of ddim's steps; 1 is as noisy as ddpm.
        frames: number of frames of a clip; more than the model's are made of overlapping windows.
        seed: seed of all noise.
        batch: number of samples drawn at once.
        vae: what decodes latents: a folder of an AutoencoderKL, "identity" for pixels, or an open one; by default what
            the run was trained with.
        dtype: type of weights and activations.
        device: device that a path is loaded to, by default the GPU where there is one.
        out: new folder of films; None returns the pixels.
        format: kind of file written: a film or an array a sample, or a contact sheet a batch.
        fps: frames a second of the films.
        ranks: processes that share the work; see distributed.ranks.start.
        progress: whether a bar shows the steps.
    """
    ranks = ranks or Ranks()
    source = open_source(model, vae, classes, dtype, device or ranks.device)
    scale = guidance if guidance is not None else 4.0 if source.adapter.choices else 1.0
    if scale != 1.0 and not source.adapter.choices:
        raise ValueError(f"sample: guidance must be left out for a model without classes, got {guidance}")
    request = Request(
        count=8 if samples is None else samples,
        batch=batch,
        seed=seed,
        steps=steps,
        method=method,
        scale=scale,
        eta=eta,
        frames=frames,
        format=format,
        fps=fps,
    )
    if out is not None:
        # writing needs PyAV, pixels do not
        from latte_fast.sampling.files import sample_files

        sample_files(source, request, out, ranks)
        return None
    drawn: list[Tensor] = []
    names: list[str] = []
    shares = chunks(request.count, request.batch)
    with tqdm(total=len(shares) * request.steps, desc="sample", unit="step", disable=None if progress else True) as bar:
        for chunk in shares:
            videos, shown = source.draw(request, chunk.numbers, bar.update)
            drawn.append(videos[: chunk.wanted])
            names += shown[: chunk.wanted]
    return Samples(torch.cat(drawn), names)


def open_source(
    model: str | Path | Trained | nn.Module,
    vae: str | Path | VAE | None,
    classes: Sequence[str | int],
    dtype: torch.dtype,
    device: torch.device | str,
) -> ModelSource:
    """What clips are drawn from, with what decodes them."""
    if isinstance(model, str | Path):
        model = load(model, device=device)
    elif isinstance(model, nn.Module):
        model = Trained(model.eval(), adapter_of(model), TrainConfig(), 0)
    where = next(model.model.parameters()).device
    codec: Any = vae
    if vae is None or isinstance(vae, str | Path):
        codec = open_vae(vae or model.config.vae, where, dtype)
    return trained_source(model, codec, [str(name) for name in classes], dtype)
