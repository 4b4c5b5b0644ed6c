"""axis_exchange and axis_gather: tokens (B, F, N, D), of which each rank of a group holds a part of one axis.

A rank's part of an axis of n is n / P rounded down, one more on the first n mod P of the P ranks. Groups are named as
torch.distributed names them. Gradients flow back as the transposed exchange; of a gathered tensor every rank must use
the same upstream gradient, and takes its own part of it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def shares(n: int, ranks: int) -> list[int]:
    """Returns the parts of an axis that the ranks of a group hold."""
    return [n // ranks + (rank < n % ranks) for rank in range(ranks)]


def group_named(name: str) -> Any:
    group: Any = name  # a type of its own in newer versions
    return dist.distributed_c10d._resolve_process_group(group)


def as_bytes(x: Tensor) -> Tensor:
    # backends differ in the dtypes that they carry; all carry bytes
    return x.view(torch.uint8)


@torch.library.custom_op("latte_fast::axis_exchange", mutates_args=())
def axis_exchange(x: Tensor, dim: int, total: int, group: str) -> Tensor:
    """Exchanges a part of `dim` and all of the other axis for all of `dim` and a part of the other, by one all-to-all.

    Args:
        x: (B, F, N, D), this rank's part of the axis `dim`, which is 1 or 2, and all of the other of them.
        dim: axis that is whole afterwards.
        total: its length.
        group: name of the process group.
    """
    ranks, me = (g := group_named(group)).size(), g.rank()
    other = 3 - dim
    held, sent = shares(total, ranks), shares(x.shape[other], ranks)
    row = x.shape[0] * x.shape[3]
    # of one clip the slices along its frames follow each other in memory already
    parts = x.split(sent, other)
    flat = x.reshape(-1) if x.shape[0] == 1 and other == 1 else torch.cat([part.reshape(-1) for part in parts])
    outs = [row * n * sent[me] for n in held]
    ins = [row * held[me] * n for n in sent]
    received = torch.empty(sum(outs), dtype=x.dtype, device=x.device)
    width = x.element_size()
    counts = [n * width for n in outs], [n * width for n in ins]
    dist.all_to_all_single(as_bytes(received), as_bytes(flat), *counts, group=g)
    if x.shape[0] == 1 and dim == 1:
        return received.view(1, total, sent[me], x.shape[3])
    # of each rank (B, its part of dim, own part of the other, D), or with the two axes in the other order
    axes = [(n, sent[me]) if dim == 1 else (sent[me], n) for n in held]
    pieces = [p.view(x.shape[0], *a, x.shape[3]) for p, a in zip(received.split(outs), axes, strict=True)]
    return torch.cat(pieces, dim)


@axis_exchange.register_fake
def _(x: Tensor, dim: int, total: int, group: str) -> Tensor:
    g = group_named(group)
    shape = list(x.shape)
    shape[dim], shape[3 - dim] = total, shares(x.shape[3 - dim], g.size())[g.rank()]
    return x.new_empty(shape)


def _keep_exchange(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.dim, _, ctx.group = inputs
    ctx.total = x.shape[3 - ctx.dim]


def _exchange_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return axis_exchange(grad, 3 - ctx.dim, ctx.total, ctx.group), None, None, None


axis_exchange.register_autograd(_exchange_back, setup_context=_keep_exchange)


@torch.library.custom_op("latte_fast::axis_gather", mutates_args=())
def axis_gather(x: Tensor, dim: int, total: int, group: str) -> Tensor:
    """Gathers the ranks' parts of an axis, the same whole tensor on each.

    Args:
        x: this rank's part.
        dim: axis of which it is a part.
        total: length of the whole axis.
        group: name of the process group.
    """
    g = group_named(group)
    held = shares(total, g.size())
    # all ranks send as much as the first, which has the most
    moved = x.movedim(dim, 0)
    if moved.shape[0] < held[0]:
        moved = torch.cat([moved, moved.new_zeros(held[0] - moved.shape[0], *moved.shape[1:])])
    moved = moved.contiguous()
    out = moved.new_empty(g.size(), *moved.shape)
    dist.all_gather_into_tensor(as_bytes(out.view(-1)), as_bytes(moved.view(-1)), group=g)
    if total % g.size():
        out = torch.cat([part[:n] for part, n in zip(out, held, strict=True)])
    return out.view(total, *moved.shape[1:]).movedim(0, dim).contiguous()


@axis_gather.register_fake
def _(x: Tensor, dim: int, total: int, group: str) -> Tensor:
    shape = list(x.shape)
    shape[dim] = total
    return x.new_empty(shape)


def _keep_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.dim, ctx.total, ctx.group = inputs


def _own_part(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    g = group_named(ctx.group)
    held = shares(ctx.total, g.size())
    return grad.narrow(ctx.dim, sum(held[: g.rank()]), held[g.rank()]).contiguous(), None, None, None


axis_gather.register_autograd(_own_part, setup_context=_keep_gather)
