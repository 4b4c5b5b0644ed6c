"""Frames of a clip that are there already: the model sees them clean, and draws the others beside them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Known:
    """The first frames of each clip, (B, k, C, h, w), shown to a model at time step 0 in place of the sampler's."""

    def __init__(self, frames: Tensor):
        self.frames = frames

    def steps(self, t: Tensor, frames: int) -> Tensor:
        """Returns the steps (..., F) of all frames for those (...) of the clips."""
        known = self.frames.shape[1]
        return torch.cat([t.new_zeros(*t.shape, known), t[..., None].expand(*t.shape, frames - known)], dim=-1)

    def shown(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the model is called with for x (B, F, C, h, w), or a batch of both halves, at t (B,)."""
        clean = self.frames.to(x).repeat(x.shape[0] // self.frames.shape[0], 1, 1, 1, 1)
        return torch.cat([clean, x[:, clean.shape[1] :]], dim=1), self.steps(t, x.shape[1])

    def around(self, model: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
            return model(*self.shown(x, t), **kwargs)

        return run
