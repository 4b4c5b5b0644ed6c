"""Clips longer than the model's: overlapping windows whose predictions are blended at every step."""

from typing import Any

import torch
from torch import Tensor

from latte_fast.diffusion.process import Model


def window_starts(frames: int, window: int, overlap: int) -> list[int]:
    """Returns first frames of windows that cover `frames`, neighbours sharing at least `overlap` frames."""
    if not 0 <= overlap < window:
        raise ValueError(f"window_starts: overlap must be in [0, {window}), got {overlap}")
    if frames < window:
        raise ValueError(f"window_starts: frames must be at least the model's {window}, got {frames}")
    starts = list(range(0, frames - window, window - overlap))
    return [*starts, frames - window]


def windowed(model: Model, window: int, frames: int, overlap: int | None = None) -> Model:
    """Turns a model of `window` frames into one of `frames`: a frame is the weighted mean of the windows that hold it.

    A window's weight rises linearly from its ends to its middle, so that no seam shows; windows overlap by half by
    default. All windows run as one batch, clip by clip, so each row of a condition (B, ...) is repeated in place.
    """
    starts = window_starts(frames, window, window // 2 if overlap is None else overlap)
    if len(starts) == 1:
        return model
    ramp = torch.arange(1, window + 1, dtype=torch.float32)
    weight = torch.minimum(ramp, ramp.flip(0))  # (W,)
    total = torch.zeros(frames)
    for start in starts:
        total[start : start + window] += weight
    # kept by device and dtype: a copy from the host would wait for the device at every step
    shares = {(total.device, total.dtype): torch.stack([weight / total[start : start + window] for start in starts])}

    def run(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        many = len(starts)
        parts = torch.stack([x[:, start : start + window] for start in starts], dim=1)  # (B, n, W, C, H, W)
        repeated = {name: _repeat(value, many, x.shape[0]) for name, value in kwargs.items()}
        if t.dim() == 2:  # a step a frame
            steps = torch.stack([t[:, start : start + window] for start in starts], dim=1).flatten(0, 1)
        else:
            steps = t.repeat_interleave(many)
        out = model(parts.flatten(0, 1), steps, **repeated).unflatten(0, (x.shape[0], many))
        key = (out.device, out.dtype)
        if key not in shares:
            shares[key] = next(iter(shares.values())).to(*key)
        blended = out.new_zeros(x.shape[0], frames, *out.shape[3:])
        for i, start in enumerate(starts):
            blended[:, start : start + window] += shares[key][i].view(-1, 1, 1, 1) * out[:, i]
        return blended

    return run


def _repeat(value: Any, many: int, batch: int) -> Any:
    """Repeats a condition that has a row for each clip once for each of the clip's windows."""
    rows = isinstance(value, Tensor) and value.dim() and value.shape[0] == batch
    return value.repeat_interleave(many, 0) if rows else value
