"""Sound as pictures: for each frame of a film, how loud its frequencies are over its duration, as TATS conditions on.

The authors resize short-time Fourier transforms to 64 x 16 a frame; where theirs come from is not published. Here a
picture has 64 bands of 125 Hz, the lowest first, and 16 moments; a value is a loudness of -80 dB (-1) to 0 dB (1).
"""

import torch
from torch import Tensor

BANDS, MOMENTS = 64, 16
WIDTH = 125.0  # of a band, in Hz
PARTS = 4  # bins of the transform in a band, so that its window is 32 ms long
QUIET = -80.0  # dB
# frames that are transformed at a time, which bounds the memory
_AT_ONCE = 256


def count_of(samples: int, rate: int, fps: float, multiple: int = 1) -> int:
    """Returns the number of pictures of a sound, the last one of silence in part, up to a multiple."""
    frames = max(1, -int(-samples * fps // rate))
    return -(-frames // multiple) * multiple


def pictures(sound: Tensor, rate: int, fps: float, count: int) -> Tensor:
    """Returns the pictures of a sound's first `count` frames, (count, 1, 64, 16) in [-1, 1].

    Args:
        sound: samples (n,) in [-1, 1]; beyond its end is silence.
        rate: samples a second.
        fps: pictures a second.
        count: number of pictures.
    """
    if sound.dim() != 1 or not len(sound):
        raise ValueError(f"pictures: sound must be (n,) with n at least 1, got {tuple(sound.shape)}")
    if not 0 < fps <= 1000 or rate < 2 * WIDTH:
        raise ValueError(f"pictures: fps must be in (0, 1000] and rate at least {2 * WIDTH:g}, got {fps} and {rate}")
    found = [_pictures(sound, rate, fps, first, min(first + _AT_ONCE, count)) for first in range(0, count, _AT_ONCE)]
    return torch.cat(found)


def _pictures(sound: Tensor, rate: int, fps: float, first: int, last: int) -> Tensor:
    size = 2 * round(PARTS * rate / WIDTH / 2)  # samples of a window
    moments = torch.arange(first * MOMENTS, last * MOMENTS, dtype=torch.float64)
    starts = ((moments + 0.5) * (rate / (fps * MOMENTS))).round().long() - size // 2
    at = starts[:, None] + torch.arange(size)
    heard = sound[at.clamp(0, len(sound) - 1)].float() * ((at >= 0) & (at < len(sound)))
    window = torch.hann_window(size)
    # a sine of amplitude 1 has 0 dB in its bin
    power = (torch.fft.rfft(heard * window).abs() * (2 / window.sum())).square()  # (n, bins)
    held = torch.zeros(len(power), BANDS * PARTS)
    kept = min(held.shape[1], power.shape[1])
    held[:, :kept] = power[:, :kept]
    loud = 10 * held.unflatten(1, (BANDS, PARTS)).sum(2).clamp(10 ** (QUIET / 10), 1.0).log10()
    values = 1 - 2 * loud / QUIET  # (n, 64)
    return values.unflatten(0, (-1, MOMENTS)).movedim(1, 2)[:, None].contiguous()
