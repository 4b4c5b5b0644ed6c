"""The exponential moving average (EMA) of the weights, sharded as they are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from latte_fast.distributed.data_parallel import local


class Ema:
    """Keeps average <- decay * average + (1 - decay) * weight, over every parameter, frozen ones too, as upstream.

    Args:
        params: parameters by name; the averages start as copies of them.
        decay: decay at each update.
        warmup: whether update number i, from 0, decays by no more than (1 + i) / (10 + i).
    """

    def __init__(self, params: Mapping[str, Tensor], decay: float, warmup: bool = False):
        self.params = params
        self.decay, self.warmup = decay, warmup
        self.average = {name: p.detach().clone() for name, p in params.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        averages = [local(a) for a in self.average.values()]
        torch._foreach_lerp_(averages, [local(p.detach()) for p in self.params.values()], 1 - decay)

    @contextmanager
    def in_place_of(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Puts the averages into the model's weights within the context, then restores the weights bit for bit."""
        kept = {name: local(w.detach()).clone() for name, w in weights.items()}
        with torch.no_grad():
            for name, w in weights.items():
                local(w.detach()).copy_(local(self.average[name]))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, w in weights.items():
                    local(w.detach()).copy_(kept[name])
