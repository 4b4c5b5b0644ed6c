"""Pooling of a frame's tokens onto a sparser grid, and nearest upsampling back, in integers."""

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
    if grid == sparse:
        return x
    frames = x.flatten(0, 1).unflatten(1, grid).permute(0, 3, 1, 2)  # (B*F, D, rows, columns), a view
    pooled = adaptive_avg_pool2d(frames, sparse).permute(0, 2, 3, 1)
    return pooled.reshape(*x.shape[:2], sparse[0] * sparse[1], x.shape[3])


def upsample_tokens(x: Tensor, grid: Grid, sparse: Grid) -> Tensor:
    """Repeats x (B, F, M, D) onto the dense grid -> (B, F, N, D): token i of n takes source floor(i * s / n).

    torch's own nearest upsampling multiplies by an fp32 ratio, which differs at some sizes (44 from 26).
    """
    if grid == sparse:
        return x
    row, column = (torch.arange(n, device=x.device) * s // n for n, s in zip(grid, sparse, strict=True))
    source = (row[:, None] * sparse[1] + column).flatten()  # (N,)
    return x.index_select(2, source)
