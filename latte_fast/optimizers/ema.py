"""The exponential moving average (EMA) of the weights, sharded as they are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from latte_fast.distributed.data_parallel import local


class Ema:
    """Averages of every parameter, frozen ones too, as upstream: decay * average + (1 - decay) * weight at an update.

    Args:
        params: parameters by name; the averages start as copies of them.
        decay: decay at each update.
        warmup: whether update number i, from 0, decays by no more than (1 + i) / (10 + i).
    """

    def __init__(self, params: Mapping[str, Tensor], decay: float, warmup: bool = False):
        self.params = params
        self.decay, self.warmup = decay, warmup
        self.average = {name: p.detach().clone() for name, p in params.items()}

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def by_weight(self) -> dict[Tensor, Tensor]:
        """Returns the averages by the parameters that they follow, for the optimizer, whose step moves them."""
        return {p: self.average[name] for name, p in self.params.items()}

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
