"""VAEs between pixels and latents: a diffusers AutoencoderKL from a local folder, or the identity."""

import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# frames in one call of the network: 16 of 256x256 take about 3 GB in an encoder's widest layers in fp32
CHUNK = 16


class VAE(Protocol):
    """Encodes and decodes frames: `factor` pixels a latent, `channels` channels; `random` is False if std is 0.

    A latent frame stands for `frame_factor` frames, one where a class of one's own does not say. A codec that decodes
    each frame by itself may say so by `framewise = True`: ranks that share a clip then decode some of its frames each.
    """

    name: str
    channels: int
    factor: int
    frame_factor: int
    random: bool

    @property
    def device(self) -> torch.device | str: ...

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes (B, F, 3, H, W) in [-1, 1] -> mean and std of the scaled latents, each (B, f, C, h, w) float32."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Decodes scaled latents (B, f, C, h, w) -> (B, F, 3, H, W) float32, about [-1, 1]."""
        ...


def frame_factor_of(vae: VAE) -> int:
    return getattr(vae, "frame_factor", 1)


def is_framewise(vae: VAE) -> bool:
    return getattr(vae, "framewise", False)


class Identity:
    """Uses pixels as latents."""

    name, channels, factor, frame_factor, random, framewise = "identity", 3, 1, 1, False, True

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        _check("encode", "video", video, 3, 1)
        mean = video.to(self.device, torch.float32)
        return mean, torch.zeros_like(mean)

    def decode(self, latent: Tensor) -> Tensor:
        _check("decode", "latent", latent, 3, 1)
        return latent.to(self.device, torch.float32)


class Autoencoder:
    """A diffusers AutoencoderKL; latents are multiplied by its scaling factor (0.18215 for Stable Diffusion 1).

    Its convolutions run channels last: Stable Diffusion's in fp32 on two cores (AMD EPYC, 2026-11-21) encode and
    decode 1.36 times as fast.
    """

    random, frame_factor, framewise = True, 1, True

    def __init__(self, network: Any, name: str, device: torch.device | str, dtype: torch.dtype) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        # nn.Module's `to`: diffusers' own warns of layers to keep in float32, of which there are none
        nn.Module.to(network, device, dtype)
        self.network = network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.channels = int(network.config.latent_channels)
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)
        self.scaling = float(network.config.scaling_factor)

    @torch.no_grad()
    def encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        _check("encode", "video", video, 3, self.factor)
        batch, frames = video.shape[:2]
        means, stds = [], []
        for part in video.flatten(0, 1).split(CHUNK):
            posterior = self.network.encode(self._laid_out(part)).latent_dist
            means.append(posterior.mean.float().contiguous() * self.scaling)
            stds.append(posterior.std.float().contiguous() * self.scaling)
        return torch.cat(means).unflatten(0, (batch, frames)), torch.cat(stds).unflatten(0, (batch, frames))

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        _check("decode", "latent", latent, self.channels, 1)
        pictures = [
            self.network.decode(self._laid_out(part.to(self.device, torch.float32) / self.scaling)).sample.float()
            for part in latent.flatten(0, 1).split(CHUNK)
        ]
        return torch.cat(pictures).contiguous().unflatten(0, tuple(latent.shape[:2]))

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)


def open_vae(
    path: str | os.PathLike, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Identity | Autoencoder:
    """Opens the VAE in a local folder (or its subfolder vae/), or "identity" for pixels; nothing is downloaded.

    Args:
        path: "identity", or a folder with config.json and diffusion_pytorch_model.safetensors.
        device: device of the VAE.
        dtype: data type of its weights and activations; latents and videos are returned in float32.
    """
    if str(path) == "identity":
        return Identity(device)
    folder = next((f for f in (Path(path), Path(path) / "vae") if (f / "config.json").is_file()), None)
    if folder is None:
        raise ValueError(
            f"open_vae: path must be identity or the folder of an AutoencoderKL (config.json and "
            f"diffusion_pytorch_model.safetensors, or a pipeline's folder with vae/ in it), got {path}"
        )
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise RuntimeError("open_vae: needs diffusers; pip install 'latte_fast[vae]'") from error
    try:
        network = AutoencoderKL.from_pretrained(str(folder), local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"open_vae: path must hold an AutoencoderKL, got {folder}: {error}") from error
    return Autoencoder(network, folder.name if folder.name != "vae" else folder.parent.name, device, dtype)


def _check(call: str, name: str, x: Tensor, channels: int, factor: int) -> None:
    if x.ndim != 5 or x.shape[2] != channels or x.shape[3] % factor or x.shape[4] % factor or not x.numel():
        rule = f" with H and W multiples of {factor}" if factor > 1 else ""
        raise ValueError(f"{call}: {name} must be (B, F, {channels}, H, W){rule}, got {tuple(x.shape)}")
