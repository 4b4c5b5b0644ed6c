"""axis_exchange and axis_gather: tokens (B, F, N, D), of which each rank of a group holds a part of one axis.

`shares` gives a rank n / P of n, rounded down, one more on the first n mod P of the P ranks. Groups are named as
torch.distributed names them. Gradients flow back as the transposed exchange; of a gathered tensor every rank must use
the same upstream gradient, and takes its own part of it.
"""

from collections.abc import Sequence
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


def gather_into(out: Tensor, x: Tensor, group: Any) -> None:
    # torch 2.13 gives it a new name
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(out, x, group=group)


def as_bytes(x: Tensor) -> Tensor:
    # backends differ in the dtypes that they carry; all carry bytes
    return x.view(torch.uint8)


class Flight:
    """An exchange under way: what comes to this rank, and how to arrange it once it is here.

    Args:
        x: (B, F, N, D), this rank's part of the axis `dim`, and all of the other of F and N.
        dim: axis that is whole afterwards, 1 or 2.
        held: the ranks' parts of `dim`.
        sent: the ranks' parts of the other axis afterwards.
        group: name of the process group.
        wait: whether the stream, with gloo the host, waits for it here.
    """

    def __init__(self, x: Tensor, dim: int, held: Sequence[int], sent: Sequence[int], group: str, wait: bool = False):
        g = group_named(group)
        batch, width, me = x.shape[0], x.shape[3], g.rank()
        other = 3 - dim
        # of one clip the slices along its frames follow each other in memory already
        flat = x.reshape(-1) if batch == 1 and other == 1 else _joined(x.split(list(sent), other))
        row = batch * width
        outs, ins = [row * n * sent[me] for n in held], [row * held[me] * n for n in sent]
        self.received = torch.empty(sum(outs), dtype=x.dtype, device=x.device)
        counts = [n * x.element_size() for n in outs], [n * x.element_size() for n in ins]
        ends = as_bytes(self.received), as_bytes(flat)
        self.work = dist.all_to_all_single(*ends, *counts, group=g, async_op=not wait)
        self.flat = flat  # kept while it is read
        # of each rank (B, its part of dim, own part of the other, D), or with the two axes in the other order
        axes = [(n, sent[me]) if dim == 1 else (sent[me], n) for n in held]
        self.shapes, self.outs, self.dim = [(batch, *a, width) for a in axes], outs, dim
        self.whole = (batch, sum(held), sent[me], width) if batch == 1 and dim == 1 else None  # in order as it comes

    def land(self) -> Tensor:
        """Returns the tokens, all of `dim` and this rank's part of the other axis."""
        if self.work is not None:
            self.work.wait()  # with NCCL the stream waits, the host goes on
        if self.whole is not None:
            return self.received.view(self.whole)
        pieces = self.received.split(self.outs)
        return torch.cat([p.view(shape) for p, shape in zip(pieces, self.shapes, strict=True)], self.dim)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


@torch.library.custom_op(
    "latte_fast::axis_exchange",
    mutates_args=(),
    schema="(Tensor x, int dim, SymInt[] held, SymInt[] sent, str group) -> Tensor",
)
def axis_exchange(x: Tensor, dim: int, held: list[int], sent: list[int], group: str) -> Tensor:
    """Exchanges a part of `dim` and all of the other axis for all of `dim` and a part of the other, by one all-to-all.

    Args:
        x: (B, F, N, D), this rank's part of the axis `dim`, which is 1 or 2, and all of the other of them.
        dim: axis that is whole afterwards.
        held: the ranks' parts of `dim`.
        sent: the ranks' parts of the other axis afterwards.
        group: name of the process group.
    """
    return Flight(x, dim, held, sent, group, wait=True).land()


@axis_exchange.register_fake
def _(x: Tensor, dim: int, held: list[int], sent: list[int], group: str) -> Tensor:
    shape = list(x.shape)
    shape[dim], shape[3 - dim] = sum(held), sent[group_named(group).rank()]
    return x.new_empty(shape)


def _keep_exchange(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.dim, ctx.held, ctx.sent, ctx.group = inputs


def _exchange_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return axis_exchange(grad, 3 - ctx.dim, ctx.sent, ctx.held, ctx.group), None, None, None, None


axis_exchange.register_autograd(_exchange_back, setup_context=_keep_exchange)


class Exchange:
    """An axis_exchange in two halves, between which other work runs; its backward is in two halves as well.

    Its arguments are those of `axis_exchange`, without x.
    """

    def __init__(self, dim: int, held: Sequence[int], sent: Sequence[int], group: str):
        self.there, self.back = (dim, held, sent, group), (3 - dim, sent, held, group)
        self.flight: Flight | None = None

    def begin(self, x: Tensor) -> Tensor:
        """Sends x off; returns what `end` takes in its place."""
        token: Tensor = _Begin.apply(x, self)
        return token

    def end(self, token: Tensor) -> Tensor:
        tokens: Tensor = _End.apply(token, self)
        return tokens

    def depart(self, x: Tensor, way: tuple[Any, ...]) -> Tensor:
        self.flight = Flight(x, *way)
        return x.new_empty(0)

    def land(self) -> Tensor:
        assert self.flight is not None
        flight, self.flight = self.flight, None
        return flight.land()


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.depart(x, exchange.there)

    @staticmethod
    def backward(ctx: Any, token: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.land(), None


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.land()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.depart(grad, ctx.exchange.back), None  # the token's, which only keeps the order


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
    gather_into(as_bytes(out.view(-1)), as_bytes(moved.view(-1)), g)
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
