"""Reuse at fixed addresses, which CUDA graphs read: one computes the blocks and keeps their sum, another reuses it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latte_fast.modules.residual import Pending, resolve
from latte_fast.modules.stack_reuse import HIGHEST_ORDER, StackReuse


class StaticReuse(StackReuse):
    """A StackReuse whose sums and weights stay where they are, so that nothing of a step is fixed in a graph.

    A computed step moves the kept sums on by one place before its graph, which may then run more than once, as it does
    when it is captured. A reused one adds all sums, those that its order leaves out with weight 0, in fp32.

    Args:
        weights: (S, keep), the weights of each of the S steps of a run.
    """

    static = True

    def __init__(self, weights: Tensor, keep: int = HIGHEST_ORDER + 1):
        super().__init__(keep)
        self.of_step = weights
        self.factors = torch.zeros_like(weights[0])
        self.sums: Tensor | None = None  # (keep, B, F, N, D), the newest first
        self._skips = False

    @property
    def skips(self) -> bool:
        return self._skips

    def compute(self, position: float) -> None:
        self._skips = False
        if self.sums is not None:
            for place in range(self.keep - 1, 0, -1):
                self.sums[place].copy_(self.sums[place - 1])

    def reuse(self, position: float, order: int, weights: Sequence[float] = ()) -> None:
        self._skips = True
        self.factors.copy_(self.of_step[int(position)])

    def stored(self, tokens: Tensor, x: Tensor, pending: Pending | None) -> Tensor:
        x = resolve(x, pending)
        if self.sums is None:
            self.sums = x.new_zeros(self.keep, *x.shape)
        torch.sub(x, tokens, out=self.sums[0, : x.shape[0]])
        return x

    def extrapolated(self, tokens: Tensor) -> Tensor:
        assert self.sums is not None
        out = tokens.float()
        for stack, factor in zip(self.sums[:, : tokens.shape[0]], self.factors, strict=True):
            out = torch.addcmul(out, stack.float(), factor)
        return out.to(tokens.dtype)


def table_of(weights: Sequence[Sequence[float]], keep: int = HIGHEST_ORDER + 1) -> Tensor:
    """Returns the weights of each step as (S, keep), with zeros for sums that are left out."""
    out = torch.zeros(len(weights), keep)
    for row, given in zip(out, weights, strict=True):
        row[: len(given)] = torch.tensor(list(given))
    return out
