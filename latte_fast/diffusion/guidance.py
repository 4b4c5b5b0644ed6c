"""Classifier-free guidance around any model callable."""

from typing import Any

import torch
from torch import Tensor

from latte_fast.diffusion.process import Model


class Guided:
    """Calls a model on a doubled batch and combines the two halves of its output; see `guided`."""

    def __init__(self, model: Model, scale: float, order: str):
        self.model, self.scale, self.order = model, scale, order

    def both(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Returns the outputs with and without the condition, (2B, F, C', H, W)."""
        return self.model(torch.cat([x, x]), torch.cat([t, t]), **kwargs)

    def combine(self, out: Tensor, channels: int) -> Tensor:
        first, second = out.chunk(2)
        cond, uncond = (first, second) if self.order == "cond_uncond" else (second, first)
        eps = uncond[:, :, :channels] + self.scale * (cond[:, :, :channels] - uncond[:, :, :channels])
        return torch.cat([eps, cond[:, :, channels:]], dim=2)

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        return self.combine(self.both(x, t, **kwargs), x.shape[2])


def guided_output(guide: Guided | None, out: Tensor, x: Tensor) -> Tensor:
    return out if guide is None else guide.combine(out, x.shape[2])


def guided(model: Model, scale: float, order: str = "cond_uncond") -> Guided:
    """Wraps a model in classifier-free guidance, which calls it on a doubled batch.

    Args:
        model: a callable on (2B, F, C, H, W); its first C output channels are guided, others (a variance) are not.
        scale: guidance scale; 1 is no guidance.
        order: "cond_uncond" as the class-conditional Latte stacks its conditions, "uncond_cond" as pipelines do.
    """
    if order not in ("cond_uncond", "uncond_cond"):
        raise ValueError(f"guided: order must be cond_uncond or uncond_cond, got {order!r}")
    return Guided(model, scale, order)
