"""Sounds of tests: tones, and files of them."""

import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latte_fast.models.tats.files import save_vqgan
from tests.helpers.tiny_vqgan import pair

# two frames and 8 x 8 values a code, so that a latent frame of a sound has 8 x 2 codes
SOUND_VQGAN = {"n_hiddens": 2, "downsample": (2, 8, 8), "embedding_dim": 4, "n_codes": 12, "channels": 1}


def tone(hertz: float, seconds: float = 1.0, rate: int = 16000, loud: float = 0.5) -> Tensor:
    """A sine (n,)."""
    time = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    return (loud * torch.sin(2 * torch.pi * hertz * time)).float()


def write_wav(path: Path, sound: Tensor, rate: int = 16000, width: int = 2) -> Path:
    """Writes samples (n,) or channels (c, n) as whole numbers of `width` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = sound[None] if sound.dim() == 1 else sound
    whole = (channels.double() * (2 ** (8 * width - 1) - 1)).round().long().t().contiguous().numpy()  # (n, c)
    if width == 1:
        held = (whole + 128).astype(np.uint8).tobytes()
    else:
        held = whole.astype("<i8").view(np.uint8).reshape(*whole.shape, 8)[..., :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(held)
    return path


def write_sound_vqgan(path: Path) -> Path:
    save_vqgan(pair(**SOUND_VQGAN)[0], path)
    return path
