"""Pooling of a frame's tokens onto a sparser grid, and nearest upsampling back, in integers."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

Grid = tuple[int, int]


def check_side(side: object) -> None:
    """Raises TypeError where a side is neither None nor a number of the host, which a step may not wait for."""
    if not (side is None or isinstance(side, int)) or isinstance(side, bool):
        raise TypeError(f"FlexLatte: side must be a number of the host, got {type(side).__name__}")


def pool_tokens(x: Tensor, grid: Grid, sparse: Grid) -> Tensor:
    """Averages x (B, F, N, D) on a grid of rows and columns -> (B, F, M, D), frame by frame.

    Cell i of s takes tokens floor(i * n / s) to ceil((i + 1) * n / s) of n, as adaptive_avg_pool2d does.
    """
    return x if grid == sparse else _Pool.apply(x, grid, sparse)


def upsample_tokens(x: Tensor, grid: Grid, sparse: Grid) -> Tensor:
    """Repeats x (B, F, M, D) onto the dense grid -> (B, F, N, D): token i of n takes source floor(i * s / n).

    torch's own nearest upsampling multiplies by an fp32 ratio, which differs at some sizes (44 from 26).
    """
    return x if grid == sparse else _Upsample.apply(x, grid, sparse)


# the backwards gather: torch's of both add atomically on a GPU, in an order that changes from call to call


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, sparse: Grid) -> Tensor:
        ctx.grids = grid, sparse
        frames = x.flatten(0, 1).unflatten(1, grid).permute(0, 3, 1, 2)  # (B*F, D, rows, columns), a view
        pooled = adaptive_avg_pool2d(frames, sparse).permute(0, 2, 3, 1)
        return pooled.reshape(*x.shape[:2], sparse[0] * sparse[1], x.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grid, sparse = ctx.grids
        return (
            _gathered(grad, sparse, [_cells_of_token(n, s, grad) for n, s in zip(grid, sparse, strict=True)]),
            None,
            None,
        )


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, sparse: Grid) -> Tensor:
        ctx.grids = grid, sparse
        row, column = (torch.arange(n, device=x.device) * s // n for n, s in zip(grid, sparse, strict=True))
        source = (row[:, None] * sparse[1] + column).flatten()  # (N,)
        return x.index_select(2, source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grid, sparse = ctx.grids
        return (
            _gathered(grad, grid, [_tokens_of_cell(n, s, grad) for n, s in zip(grid, sparse, strict=True)]),
            None,
            None,
        )


def _gathered(grad: Tensor, grid: Grid, tables: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sums weighted tokens of a grid (B, F, rows * columns, D) along its rows, then along its columns."""
    out = grad.unflatten(2, grid)
    for dim, (index, weight) in enumerate(tables, start=2):
        shape = [1] * 5
        shape[dim] = -1
        parts = (out.index_select(dim, i) * w.view(shape) for i, w in zip(index, weight, strict=True))
        out = functools.reduce(torch.add, parts)
    return out.flatten(2, 3).to(grad.dtype)


def _cells_of_token(n: int, s: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the two cells, (2, n), that may hold each of n tokens, and the token's weight in each: 0 or 1 / size."""
    token = torch.arange(n, device=like.device)
    cell = token * s // n + torch.arange(2, device=like.device)[:, None]
    first, end = cell * n // s, ((cell + 1) * n + s - 1) // s
    weight = ((first <= token) & (cell < s)) / (end - first).to(_sums(like))
    return cell.clamp(max=s - 1), weight


def _tokens_of_cell(n: int, s: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the tokens, (most, s), that may come from each of s cells, and their weights: 1, or 0 of another's."""
    cell = torch.arange(s, device=like.device)
    first, end = (cell * n + s - 1) // s, ((cell + 1) * n + s - 1) // s
    token = first + torch.arange((n + s - 1) // s, device=like.device)[:, None]
    return token.clamp(max=n - 1), (token < end).to(_sums(like))


def _sums(like: Tensor) -> torch.dtype:
    """Returns the data type of sums: fp32 for 16 bits."""
    return torch.promote_types(like.dtype, torch.float32)
