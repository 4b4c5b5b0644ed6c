"""Draws long films from a trained model in one call."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latte_fast.codecs.vae import VAE
from latte_fast.distributed.ranks import Ranks, alone
from latte_fast.long_films.request import Kind, LongOptions, LongRequest, default_steps
from latte_fast.long_films.source import LongSource
from latte_fast.runs.load import Trained, load
from latte_fast.sampling.sample import open_source


def sample_long(
    model: str | Path | Trained | nn.Module,
    kind: Kind,
    frames: int,
    *,
    out: str | Path,
    ranks: Ranks | None = None,
    resume: bool = False,
    **given: Any,
) -> None:
    """Draws films longer than a model's clips and writes them to the folder `out`; every rank calls this.

    Args:
        model: path for latte_fast.load, its result, or a module.
        kind: fifo, windows or rollout; docs/long-films.md tells which to take.
        frames: number of frames of a film.
        out: folder for the files.
        ranks: processes that share the films.
        resume: whether to go on with the same request into the same folder, keeping what is there.
        **given: what `open_long` takes.
    """
    ranks = ranks or alone()
    films, request = open_long(model, kind, frames, **{"device": ranks.device, **given})
    draw_films(films, request, out, ranks, resume)


def draw_films(films: LongSource, request: LongRequest, out: str | Path, ranks: Ranks, resume: bool = False) -> None:
    """Writes a request's films to the folder `out`; warns where rollouts are of a model not trained for them."""
    # imported here because it loads PyAV
    from latte_fast.sampling.files import sample_files

    if request.kind == "rollout" and not films.frame_steps and ranks.first:
        print("sample: the model was trained without diffusion.frame_steps: rollouts may fall apart", file=sys.stderr)
    sample_files(films, request, out, ranks, resume=resume)


def open_long(
    model: str | Path | Trained | nn.Module,
    kind: Kind,
    frames: int,
    *,
    classes: Sequence[str | int] = (),
    samples: int = 8,
    guidance: float | None = None,
    steps: int | None = None,
    options: LongOptions = LongOptions(),  # noqa: B008  frozen
    vae: str | Path | VAE | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **given: Any,
) -> tuple[LongSource, LongRequest]:
    """Opens a model as a source of long films; returns it with the request, checked and completed.

    Args:
        model: path for latte_fast.load, its result, or a module.
        kind: fifo, windows or rollout.
        frames: number of frames of a film.
        classes: names or numbers of classes or captions, in turn over the samples; by default drawn by the seed.
        samples: number of films.
        guidance: scale of classifier-free guidance, 1 is none; by default 4, or 1 for a model without classes.
        steps: number of sampling steps; by default 50, of fifo the next number that divides into windows.
        options: how the films are drawn.
        vae: decoder of the latents, by default that of the run.
        dtype: data type of weights and activations.
        device: device that a path is loaded to.
        **given: method, eta, seed, batch, format, fps, plan and lossless, fields of a Request.
    """
    if isinstance(model, str | Path):
        model = load(model, device=device)
    source = open_source(model, vae, classes, dtype, device)
    scale = guidance if guidance is not None else 4.0 if source.adapter.choices else 1.0
    if scale != 1.0 and not source.adapter.choices:
        raise ValueError(f"sample: guidance must be left out for a model without classes, got {guidance}")
    wanted = default_steps(kind, source.shape[0], 50) if steps is None else steps
    request = LongRequest(count=samples, scale=scale, steps=wanted, frames=frames, kind=kind, options=options, **given)
    films = LongSource(source, model.config.diffusion.frame_steps if isinstance(model, Trained) else 0.0)
    return films, films.complete(request)
