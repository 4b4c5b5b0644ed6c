"""The trained weights: the model's own, or an fp32 master of bf16 ones; and the norm of their gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from latte_fast.distributed.data_parallel import local
from latte_fast.distributed.ranks import Ranks


class Weights:
    """Holds fp32 weights by upstream's names, and copies between them and the model.

    Args:
        model: model whose parameters they are; cast to bf16 where `master`.
        master: whether to update an fp32 copy, while the model runs on the copy rounded to bf16.
    """

    def __init__(self, model: nn.Module, master: bool = False):
        own: dict[str, Tensor] = dict(model.named_parameters())
        self.own, self.by_name = own, own
        if master:
            self.by_name = {name: p.detach().clone().float().requires_grad_(p.requires_grad) for name, p in own.items()}
            model.to(torch.bfloat16)
            self.own = dict(model.named_parameters())
        self.master = master

    @property
    def trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.by_name.items() if p.requires_grad}

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Adds the model's gradients to the master's in fp32, after each micro-batch."""
        if not self.master:
            return
        for name, p in self.own.items():
            if p.grad is not None:
                total = self.by_name[name]
                total.grad = p.grad.float() if total.grad is None else total.grad.add_(p.grad)
                p.grad = None

    @torch.no_grad()
    def update_model(self) -> None:
        """Copies the master into the model's weights, after each update or load."""
        if self.master:
            torch._foreach_copy_([p.detach() for p in self.own.values()], list(self.by_name.values()))

    def finite(self) -> bool:
        """Whether this rank's part of all weights is finite."""
        return bool(torch.stack([local(p.detach()).isfinite().all() for p in self.by_name.values()]).all())


def gradients(weights: Iterable[Tensor]) -> list[Tensor]:
    """Returns this rank's part of every gradient."""
    return [local(p.grad) for p in weights if p.grad is not None]


def norm_of(grads: list[Tensor], ranks: Ranks, sharded: bool) -> Tensor:
    """Returns the L2 norm of all gradients as one vector, summed over ranks where they are sharded."""
    square = torch.stack(torch._foreach_norm(grads)).square().sum()
    return (ranks.sum(square) if sharded else square).sqrt()


def clip(grads: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scales gradients down to the limit where their norm is above it."""
    torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1.0))
