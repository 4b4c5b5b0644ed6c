"""Torch's operators with every sum taken in another order: the same maths, other roundings."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Reordered(TorchDispatchMode):
    """Permutes, in each operator that sums, what is summed over; operators without a sum run as they are.

    It sees what autograd runs backward too, so that gradients are summed in other orders as well.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.seed = seed

    def order(self, size: int, device: torch.device) -> Tensor:
        return torch.randperm(size, generator=self.generator).to(device)

    def grouped_order(self, size: int, groups: int, device: torch.device) -> Tensor:
        """An order of `size` channels that keeps each of its groups together, the same one inside each."""
        inside = self.order(size // groups, device)
        return (torch.arange(groups, device=device)[:, None] * (size // groups) + inside).flatten()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        reorder = REORDERINGS.get(func)
        return reorder(self, func, *args, **(kwargs or {})) if reorder else func(*args, **(kwargs or {}))


def _product(mode: Reordered, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """mm, bmm, addmm and baddbmm: the columns of a and the rows of b."""
    *added, a, b = args
    order = mode.order(a.shape[-1], a.device)
    return func(*added, a.index_select(-1, order), b.index_select(-2, order), **kwargs)


def _softmax(mode: Reordered, func: Callable, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    order = mode.order(x.shape[dim], x.device)
    return func(x.index_select(dim, order), dim, half_to_float).index_select(dim, order.argsort())


def _softmax_backward(mode: Reordered, func: Callable, d: Tensor, p: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    order = mode.order(p.shape[dim], p.device)
    return func(d.index_select(dim, order), p.index_select(dim, order), dim, dtype).index_select(dim, order.argsort())


def _at(t: Tensor | None, order: Tensor) -> Tensor | None:
    return None if t is None else t.index_select(-1, order)


def _norm(mode: Reordered, func: Callable, x: Tensor, shape: Sequence[int], *rest: Any) -> tuple[Tensor, ...]:
    if len(shape) != 1:
        return func(x, shape, *rest)
    order = mode.order(shape[0], x.device)
    w, b, eps = rest
    out, mean, rstd = func(_at(x, order), shape, _at(w, order), _at(b, order), eps)
    return out.index_select(-1, order.argsort()), mean, rstd


def _norm_backward(
    mode: Reordered, func: Callable, d: Tensor, x: Tensor, shape: Sequence[int], *rest: Any
) -> tuple[Tensor | None, ...]:
    """The columns, and the rows, over which the gradients of an affine norm's vectors are summed."""
    if len(shape) != 1:
        return func(d, x, shape, *rest)
    mean, rstd, w, b, wanted = rest
    order, rows = mode.order(shape[0], x.device), mode.order(mean.numel(), x.device)
    d2, x2, mean2, rstd2 = (t.reshape(len(rows), -1)[rows] for t in (d, x, mean, rstd))
    dx, dw, db = func(d2[:, order], x2[:, order], shape, mean2, rstd2, _at(w, order), _at(b, order), wanted)
    inverse = order.argsort()
    return None if dx is None else dx[rows.argsort()][:, inverse].view(x.shape), _at(dw, inverse), _at(db, inverse)


def _sum(
    mode: Reordered, func: Callable, x: Tensor, dims: Sequence[int] | None = None, *rest: Any, **kw: Any
) -> Tensor:
    for dim in dims or range(x.dim()):
        x = x.index_select(dim, mode.order(x.shape[dim], x.device))
    return func(x, dims, *rest, **kw)


def _sum_of_all(mode: Reordered, func: Callable, x: Tensor, **kw: Any) -> Tensor:
    return func(x.flatten()[mode.order(x.numel(), x.device)], **kw)


@contextlib.contextmanager
def _library_of(seed: int) -> Iterator[None]:
    """oneDNN for even seeds and torch's own loops for odd ones, which sum over a window in different orders."""
    with torch.backends.mkldnn.flags(enabled=torch.backends.mkldnn.enabled and seed % 2 == 0):
        yield


def _convolution(mode: Reordered, func: Callable, x: Tensor, w: Tensor, b: Tensor | None, *rest: Any) -> Tensor:
    """The channels of x, inside their groups; the terms of a window by another library."""
    transposed, groups = rest[3], rest[5]
    order = mode.grouped_order(x.shape[1], groups, x.device)
    w = w.index_select(0, order) if transposed else w.index_select(1, order[: w.shape[1]])
    with _library_of(mode.seed):
        return func(x.index_select(1, order), w, b, *rest)


def _convolution_backward(
    mode: Reordered, func: Callable, d: Tensor, x: Tensor, w: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    """The clips, over which the weight's and the bias's gradients are summed, and the channels of the output."""
    transposed, groups = rest[4], rest[6]
    clips, order = mode.order(x.shape[0], x.device), mode.grouped_order(d.shape[1], groups, x.device)
    dim, inside = (1, order[: w.shape[1]]) if transposed else (0, order)
    with _library_of(mode.seed):
        d = d.index_select(0, clips).index_select(1, order)
        dx, dw, db = func(d, x.index_select(0, clips), w.index_select(dim, inside), *rest)
    return (
        None if dx is None else dx.index_select(0, clips.argsort()),
        None if dw is None else dw.index_select(dim, inside.argsort()),
        None if db is None else db[order.argsort()],
    )


REORDERINGS: dict[Any, Callable] = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _product,
    aten.baddbmm.default: _product,
    aten._softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten.native_layer_norm.default: _norm,
    aten.native_layer_norm_backward.default: _norm_backward,
    aten.sum.dim_IntList: _sum,
    aten.sum.default: _sum_of_all,
    aten.mean.dim: _sum,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
}
