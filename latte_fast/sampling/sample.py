"""Draws clips from a trained model in one call."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from latte_fast.codecs.vae import VAE
from latte_fast.distributed.ranks import Ranks, alone
from latte_fast.models.families import adapter_of
from latte_fast.modules.sequence import ParallelConfig
from latte_fast.runs.codec import open_codec
from latte_fast.runs.config import TrainConfig
from latte_fast.runs.load import Trained, load
from latte_fast.runs.plan import COMPUTED, plan_path
from latte_fast.runs.tokens import is_token_run
from latte_fast.sampling.chunks import chunks
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import FilmSource, ModelSource, Source, trained_source


class Samples(NamedTuple):
    """Clips and what each shows."""

    videos: Tensor  # (B, F, H, W, 3) uint8
    names: list[str]


def sample(
    model: str | Path | Trained | nn.Module | FilmSource,
    *,
    classes: Sequence[str | int] = (),
    samples: int | None = None,
    guidance: float | None = None,
    steps: int = 50,
    method: Literal["ddpm", "ddim", "dpm++", "unipc", "euler", "heun"] = "ddim",
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
    resume: bool = False,
    plan: str | Path = "",
    quality: str = "exact",
    precise_steps: str | Sequence[str] = (),
    parallel: ParallelConfig | None = None,
) -> Samples | None:
    """Draws clips from a trained model: returned as pixels, or written to the folder `out` as they are made.

    Sample i depends on the seed and i alone, whatever the batch and the number of processes.

    Args:
        model: path for latte_fast.load, its result, a module trained with the linear schedule of 1000 steps, or what
            latte_fast.token_films.sample.open_tokens returns, of which `classes`, `vae` and `dtype` are arguments.
        classes: names or numbers of classes or captions, in turn over the samples; by default drawn by the seed.
        samples: number of samples, by default 8.
        guidance: scale of classifier-free guidance, 1 is none; by default 4, or 1 for a model without classes.
        steps: number of sampling steps.
        method: ddpm, ddim, dpm++ (DPM-Solver++(2M)), unipc (UniPC-2), heun, or euler, which is ddim's step.
        eta: noise of ddim's steps; 1 is as noisy as ddpm.
        frames: number of frames in a clip; longer clips than the model's are made of overlapping windows.
        seed: seed of all noise.
        batch: number of samples drawn at once.
        vae: decoder of the latents: folder of an AutoencoderKL, "identity" for pixels, or an open VAE; by default the
            VAE of the run.
        dtype: data type of weights and activations.
        device: device that a path is loaded to, by default that of `ranks`, else the GPU where there is one.
        out: folder for the files; None returns the pixels.
        format: kind of file: a film (mp4, gif) or an array (npz) for each sample, or a contact sheet (png) of a batch.
        fps: frames a second of the films.
        ranks: processes that share the work; see distributed.ranks.start.
        progress: whether to show a progress bar.
        plan: file of a plan that `latte-fast calibrate` wrote, which computes fewer steps.
        quality: exact; lossless, which computes the same in another order of roundings; or a plan by name, as high or
            fast, of the run that `model` is the folder of.
        precise_steps: steps that a quantised model runs in 16 bits, if it has kept them: first, last, numbers, or
            ranges such as 0-4.
        resume: whether to go on with the same request into the same folder, keeping the files that are there.
        parallel: how several ranks share each clip, rather than each rank drawing clips of its own.
    """
    ranks = ranks or alone()
    if isinstance(model, FilmSource):
        given = {"classes": classes, "guidance": guidance, "vae": vae, "plan": plan, "parallel": parallel}
        given["precise_steps"] = precise_steps
        for name, value in (given | {"quality": "" if quality == "exact" else quality}).items():
            if value:
                raise ValueError(f"sample: {name} must be left out for films of tokens, got {value!r}")
        asked = Request(count=8 if samples is None else samples, batch=batch, seed=seed, frames=frames, format=format,
                        fps=fps)  # fmt: skip
        return drawn(model, replace(asked, steps=model.steps(asked)), out, ranks, progress, resume)
    if isinstance(model, str | Path) and is_token_run(model):
        rule = "opened by latte_fast.token_films.sample.open_tokens where it is a token transformer's run"
        raise ValueError(f"sample: model must be {rule}, got {model}")
    if quality not in COMPUTED:
        if plan:
            raise ValueError(f"sample: quality must be left out with a plan, got {quality!r}")
        if not isinstance(model, str | Path):
            rule = "exact or lossless for a model that is not given by its run's folder; plan takes a file"
            raise ValueError(f"sample: quality must be {rule}, got {quality!r}")
        plan = plan_path(model, quality)
    if parallel is not None:
        together = parallel.sequence * parallel.cfg
        if ranks.count % together:
            raise ValueError(f"sample: sequence * cfg must divide the {ranks.count} processes, got {together}")
        if parallel.cfg > 1 and (plan or quality != "exact"):
            raise ValueError("sample: cfg must be 1 but for exact samples, whose every forward has both halves, got 2")
        ranks = replace(ranks, together=together)
    source = open_source(model, vae, classes, dtype, device or ranks.device)
    if ranks.together > 1:
        network: Any = source.network
        network.enable_parallelism(parallel)
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
        plan=str(plan),
        lossless=quality == "lossless",
        precise_steps=(precise_steps,) if isinstance(precise_steps, str) else tuple(precise_steps),
    )
    return drawn(source, request, out, ranks, progress, resume)


def drawn(
    source: Source, request: Request, out: str | Path | None, ranks: Ranks, progress: bool, resume: bool
) -> Samples | None:
    """Draws a request's samples and returns them, or writes them to the folder `out`."""
    if out is not None:
        # imported here, as it loads PyAV, which pixels do not need
        from latte_fast.sampling.files import sample_files

        sample_files(source, request, out, ranks, resume=resume)
        return None
    parts: list[Tensor] = []
    names: list[str] = []
    shares = chunks(request.count, request.batch)
    with tqdm(total=len(shares) * request.calls, desc="sample", unit="step", disable=None if progress else True) as bar:
        for chunk in shares:
            videos, shown = source.draw(request, chunk.numbers, bar.update)
            parts.append(videos[: chunk.wanted])
            names += shown[: chunk.wanted]
    return Samples(torch.cat(parts), names)


def open_source(
    model: str | Path | Trained | nn.Module,
    vae: str | Path | VAE | None,
    classes: Sequence[str | int],
    dtype: torch.dtype,
    device: torch.device | str,
) -> ModelSource:
    """Opens the model to sample from, with the VAE that decodes its latents."""
    if isinstance(model, str | Path):
        model = load(model, device=device)
    elif isinstance(model, nn.Module):
        model = Trained(model.eval(), adapter_of(model), TrainConfig(), 0)
    where = next(model.model.parameters()).device
    codec: Any = vae
    if vae is None or isinstance(vae, str | Path):
        codec = open_codec(vae or model.config.vae, where, dtype)
    return trained_source(model, codec, [str(name) for name in classes], dtype)
