"""One token of every sequence from its logits: temperature, top-k, top-p, and a uniform number that decides."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latte_fast.diffusion.noise import Use, generator


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn from their probabilities; the defaults are the authors'.

    Args:
        temperature: divisor of the logits; 0 takes the likeliest token always.
        top_k: number of likeliest tokens that can be drawn; 0 is all.
        top_p: probability of the tokens that can be drawn, the likeliest first, with the one that reaches it; 1 is all.
    """

    temperature: float = 1.0
    top_k: int = 2048
    top_p: float = 0.92

    def __post_init__(self) -> None:
        rules = (
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0, and finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
        )
        for name, ok, rule in rules:
            if not ok:
                raise ValueError(f"sample: tokens.{name} must be {rule}, got {getattr(self, name)}")


def uniforms(seed: int, numbers: Sequence[int], frame: int, count: int) -> Tensor:
    """Returns the numbers in [0, 1) that decide a latent frame's tokens, (B, count), by seed, sample and frame."""
    rows = [torch.from_numpy(generator(seed, number, Use.TOKEN, frame).random(count)) for number in numbers]
    return torch.stack(rows)


def pick(logits: Tensor, uniform: Tensor, how: Drawing) -> Tensor:
    """Draws a token of each row: logits (B, n) and uniform numbers (B,) in fp64 -> (B,) int64.

    The first token at which the sum of the probabilities, the likeliest first, exceeds the uniform number's share.
    """
    if not how.temperature or how.top_k == 1:
        return logits.argmax(1)
    values = logits.float() / how.temperature
    count = values.shape[1]
    kept = min(how.top_k or count, count)
    order: Tensor | None = None
    if kept < count:
        values, order = values.topk(kept)
    elif how.top_p < 1:
        values, order = values.sort(stable=True, dim=1, descending=True)
    sums = values.double().softmax(1).cumsum(1)
    last = torch.full_like(logits[:, :1], kept - 1, dtype=torch.int64)
    if how.top_p < 1:
        # a token is kept while the sum before it is at most top_p
        last = (sums[:, :-1] <= how.top_p).sum(1, keepdim=True)
    wanted = uniform.to(sums)[:, None] * sums.gather(1, last)
    place = torch.searchsorted(sums, wanted, right=True).minimum(last)
    return (place if order is None else order.gather(1, place))[:, 0]
