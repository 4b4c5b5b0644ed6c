"""Opens codecs by their path: the identity, a diffusers AutoencoderKL, or a 3D-VQGAN from a file or a run."""

import os
from pathlib import Path

import torch

from latte_fast.codecs.vae import VAE, open_vae
from latte_fast.codecs.vqgan import VQGANCodec
from latte_fast.models.tats.chunks import latents_of, pixels_of
from latte_fast.models.tats.files import fingerprint, keywords_of, load_vqgan
from latte_fast.models.tats.vqgan import VQGAN
from latte_fast.runs import checkpoint
from latte_fast.runs.config import CONFIG, TrainConfig
from latte_fast.runs.yaml import read_config


def open_codec(path: str | os.PathLike, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> VAE:
    """Opens a codec; nothing is downloaded.

    Args:
        path: "identity" for pixels, the folder of an AutoencoderKL, or what `open_vqgan` takes.
        device: device of the codec.
        dtype: data type of its weights and activations; latents and videos are returned in float32.
    """
    return open_vqgan(path, device, dtype) if is_vqgan(path) else open_vae(path, device, dtype)


def is_vqgan(path: str | os.PathLike) -> bool:
    """Whether a path is a file of a VQGAN, its run, or a checkpoint of its run."""
    path = Path(path)
    if path.is_file():
        return path.suffix == ".ckpt" or (path.suffix == ".safetensors" and keywords_of(path) is not None)
    run = path.parents[1] if path.parent.name == checkpoint.FOLDER else path
    return (run / CONFIG).is_file() and read_config(run / CONFIG, TrainConfig).objective == "vqgan"


def open_vqgan(
    path: str | os.PathLike, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VQGANCodec:
    """Opens a 3D-VQGAN: a .ckpt or .safetensors file, a run's folder, or one of its checkpoints."""
    network = load_run_vqgan(path)
    print_of = fingerprint(network)
    tiles = (latents_of, pixels_of) if network.config.norm == "batch" else None
    return VQGANCodec(network.to(device, dtype), tiles, Path(path).name, print_of)


def load_run_vqgan(path: str | os.PathLike, weights: str = "ema") -> VQGAN:
    """Loads a 3D-VQGAN in fp32 from a file, a run's folder, whose newest whole checkpoint it takes, or a checkpoint."""
    path = Path(path)
    if weights not in ("ema", "model"):
        raise ValueError(f"load: weights must be ema or model, got {weights!r}")
    if path.is_file():
        return load_vqgan(path)
    if not path.is_dir() or not is_vqgan(path):
        raise ValueError(f"load: path must be a VQGAN's file, its run's folder or a checkpoint, got {path}")
    return load_vqgan(checkpoint.whole(path)[1] / f"{weights}.safetensors")
