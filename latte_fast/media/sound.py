"""Reads the sound of a file as one channel: WAV by the standard library, all else, films too, by PyAV."""

import os
import wave
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.resampler import AudioResampler
from torch import Tensor

# of damaged files, and of files that hold no sound
_FAILURES = (av.FFmpegError, OSError, EOFError, IndexError, ValueError)


class SoundError(RuntimeError):
    """Raised for a file whose sound does not decode; the message begins with its name."""


def read_sound(path: str | os.PathLike) -> tuple[Tensor, int]:
    """Returns the mean of a file's channels, (n,) float32 in [-1, 1], and the samples a second."""
    path = Path(path)
    if not path.is_file():
        raise SoundError(f"{path}: no such file")
    try:
        found = _of_wav(path) if path.suffix.lower() == ".wav" else None
        sound, rate = found or _decoded(path)
    except _FAILURES as error:
        raise SoundError(f"{path}: {(str(error).strip() or repr(error)).splitlines()[0]}") from error
    if not len(sound) or not np.isfinite(sound).all():
        raise SoundError(f"{path}: holds no sound" if not len(sound) else f"{path}: holds values that are not finite")
    return torch.from_numpy(sound).clamp(-1, 1), rate


def _of_wav(path: Path) -> tuple[np.ndarray, int] | None:
    """Reads a WAV of whole numbers; None for another, such as one of floating-point numbers, which is left to PyAV."""
    try:
        with wave.open(str(path)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            held = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
    except (wave.Error, EOFError):
        return None
    held = held[: len(held) // (width * channels) * width * channels].reshape(-1, width)
    # samples of 8 bits have no sign, all others have; the bytes are moved to the top of 32 bits
    whole = np.zeros((len(held), 4), np.uint8)
    whole[:, 4 - width :] = held ^ 0x80 if width == 1 else held
    values = whole.view("<i4")[:, 0].astype(np.float64) / 2**31
    return values.reshape(-1, channels).mean(1).astype(np.float32), rate


def _decoded(path: Path) -> tuple[np.ndarray, int]:
    with av.open(f"file:{os.fspath(path)}", metadata_errors="replace") as box:
        if not box.streams.audio:
            raise ValueError("has no sound")
        stream = box.streams.audio[0]
        # channels are averaged here, as PyAV's mixing weighs them by their place
        resampler = AudioResampler(format="fltp", rate=stream.rate)
        parts = [part.to_ndarray() for frame in box.decode(stream) for part in resampler.resample(frame)]
        parts += [part.to_ndarray() for part in resampler.resample(None)]
        rate = int(stream.rate)
    return np.concatenate(parts, 1).mean(0).astype(np.float32) if parts else np.zeros(0, np.float32), rate
