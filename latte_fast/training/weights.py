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
        new: list[tuple[Tensor, Tensor]] = []
        more: list[tuple[Tensor, Tensor]] = []
        for name, p in self.own.items():
            total = self.by_name[name]
            if p.grad is None:
                continue
            if total.grad is None:
                total.grad = torch.empty_like(total)
                new.append((total.grad, p.grad))
            else:
                more.append((total.grad, p.grad))
            p.grad = None
        if new:
            torch._foreach_copy_([total for total, _ in new], [grad for _, grad in new])
        if more:
            torch._foreach_add_([total for total, _ in more], [grad for _, grad in more])

    @torch.no_grad()
    def update_model(self) -> None:
        """Copies the master into the model's weights, after a load."""
        if self.master:
            torch._foreach_copy_([p.detach() for p in self.own.values()], list(self.by_name.values()))

    def copies(self) -> dict[Tensor, Tensor]:
        """Returns the model's weights by those of the master that are trained in their place."""
        return {p: self.own[name] for name, p in self.trained.items()} if self.master else {}

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
