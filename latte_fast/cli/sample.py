"""latte-fast sample."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from latte_fast.data.vae import open_vae
from latte_fast.training import load_trained, start
from latte_fast.training.sampling import NAMES, Request, TrainedSource, sample_files
from latte_fast.training.text_sampling import TextRequest, read_prompts, sample_text

# of flags that are refused where they would do nothing, so that a given one has to be told from a default
DDIM, EMA = (tyro.conf.arg(help_behavior_hint=f"(default: {name})") for name in ("ddim", "ema"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sample(
    path: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PATH]")] = None,
    out: str = "samples",
    classes: tuple[str, ...] = (),
    count: int | None = None,
    batch: int = 4,
    seed: int = 0,
    steps: int = 50,
    method: Annotated[Literal["ddpm", "ddim", "dpm++"] | None, DDIM] = None,
    scale: float | None = None,
    eta: float = 0.0,
    frames: int | None = None,
    format: Literal["mp4", "gif", "png", "npz"] = "mp4",
    fps: float = 8.0,
    weights: Annotated[Literal["ema", "model"] | None, EMA] = None,
    vae: str | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    pretrained: str | None = None,
    prompt: tuple[str, ...] = (),
    prompts: Path | None = None,
    negative: str = "",
    scheduler: str | None = None,
    height: int | None = None,
    width: int | None = None,
    over_time: bool = True,
    temporal_decoder: bool = False,
) -> None:
    """Draw clips from a trained model, or from text; one process as it is, several under torchrun, the same files.

    Args:
        path: a run's folder, one of its checkpoints, or a .pt / .safetensors file under upstream's keys.
        out: folder of the files; none that is there is overwritten.
        classes: names or numbers, in turn over the samples; none draws them by the seed.
        count: samples in all; by default 8, or one a prompt.
        batch: samples at once; another batch may change their last bits. Text is sampled one by one.
        seed: sample i depends on the seed and i alone.
        steps: of sampling.
        method: of sampling from a trained model.
        scale: of classifier-free guidance, 1 is none; by default 4, for text 7.5.
        eta: of ddim, 1 is as noisy as ddpm.
        frames: of a clip; more than a trained model's are made of overlapping windows.
        format: a film or an array a sample, or a contact sheet a batch.
        fps: of the films.
        weights: the average, or the weights themselves.
        vae: a diffusers AutoencoderKL folder or identity; by default what the run was trained with.
        dtype: of weights and activations.
        pretrained: a local folder of diffusers' LattePipeline (Latte-1), for any text; with `path`, a run on captions,
            its weights in the place of the folder's.
        prompt: what to show, in turn over the samples; without --pretrained captions that the run was trained on.
        prompts: a file with a prompt a line, after those of --prompt.
        negative: what not to show.
        scheduler: DDIM, DDPM, EulerDiscrete, DPMSolverMultistep, ...; by default the folder's.
        height: of the film in pixels, by default the model's.
        width: of the film in pixels, by default the model's.
        over_time: --no-over-time skips the attention over time, as upstream's image sampling does.
        temporal_decoder: decode with the folder's vae_temporal_decoder.
    """
    try:
        asked = (*prompt, *(read_prompts(prompts) if prompts is not None else ()))
        if path is None and pretrained is None:
            raise ValueError("sample: give a trained model's path, or --pretrained with --prompt")
        if pretrained is not None and not asked:
            raise ValueError("sample: --pretrained needs --prompt or --prompts")
        if pretrained is not None:
            refuse("with --pretrained", classes=classes, method=method, vae=vae)
            refuse("without a path", weights=weights if path is None else None)
            text = TextRequest(asked, negative, scheduler, height, width, frames, over_time, temporal_decoder)
        else:
            text = None
            over = {"no-over-time": not over_time, "temporal-decoder": temporal_decoder}
            refuse("without --pretrained", scheduler=scheduler, height=height, width=width, negative=negative, **over)
        count = count if count is not None else len(asked) or 8
        given, scale = scale, scale if scale is not None else 7.5 if asked else 4.0
        request = Request(count, batch, seed, steps, method or "ddim", scale, eta, frames, format, fps)
        with start() as ranks:
            kind = DTYPES[dtype]
            trained = None if path is None else load_trained(path, weights or "ema", ranks.device)
            if pretrained is not None and text is not None:
                sample_text(pretrained, text, request, out, ranks, kind, trained)
            else:
                assert trained is not None
                opened = open_vae(vae or trained.config.vae, ranks.device, kind)
                source = TrainedSource(trained, opened, (*classes, *asked), kind)
                refuse("for a model without classes", scale=None if source.family.choices or given == 1 else given)
                sample_files(source, request, out, ranks)
            if ranks.first:
                print(f"{out}: {count} samples, {NAMES} says what each shows")
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None


def refuse(where: str, **flags: object) -> None:
    """Flags that would do nothing; a flag that was not given is None, False or empty."""
    for name, value in flags.items():
        if not (value is None or value is False or value in ("", ())):
            got = "" if value is True else f", got {value!r}"
            raise ValueError(f"sample: --{name} must be left out {where}{got}")
