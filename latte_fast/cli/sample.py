"""latte-fast sample."""

from typing import Annotated, Literal

import torch
import tyro

from latte_fast.data.vae import open_vae
from latte_fast.training import load_trained, start
from latte_fast.training.sampling import ClassSource, Request, sample_files

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sample(
    path: Annotated[str, tyro.conf.Positional],
    out: str = "samples",
    classes: tuple[str, ...] = (),
    count: int = 8,
    batch: int = 4,
    seed: int = 0,
    steps: int = 50,
    method: Literal["ddpm", "ddim", "dpm++"] = "ddim",
    scale: float = 4.0,
    eta: float = 0.0,
    frames: int | None = None,
    format: Literal["mp4", "gif", "png", "npz"] = "mp4",
    fps: float = 8.0,
    weights: Literal["ema", "model"] = "ema",
    vae: str | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> None:
    """Draw clips from a trained model; one process as it is, several under torchrun, the same files.

    Args:
        path: a run's folder, one of its checkpoints, or a .pt / .safetensors file under upstream's keys.
        out: folder of the files; none that is there is overwritten.
        classes: names or numbers, in turn over the samples; none draws them by the seed.
        count: samples in all.
        batch: samples at once; another batch may change their last bits.
        seed: sample i depends on the seed and i alone.
        steps: of sampling.
        method: of sampling.
        scale: of classifier-free guidance; 1 is none.
        eta: of ddim, 1 is as noisy as ddpm.
        frames: of a clip; more than the model's are made of overlapping windows.
        format: a film or an array a sample, or a contact sheet a batch.
        fps: of the films.
        weights: the average, or the weights themselves.
        vae: a diffusers AutoencoderKL folder or identity; by default what the run was trained with.
        dtype: of weights and activations.
    """
    try:
        request = Request(count, batch, seed, steps, method, scale, eta, frames, format, fps)
        with start() as ranks:
            trained = load_trained(path, weights, ranks.device)
            kind = DTYPES[dtype]
            opened = open_vae(vae or trained.config.vae, ranks.device, kind)
            sample_files(ClassSource(trained, opened, classes, kind), request, out, ranks)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
