"""Launches the C++ kernels of pooled_norm."""

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import CODES, NO_GROUPS, NO_ROWS, groups, rows
from latte_fast._ext.norm_modulate import why_not as why_not_normed

# dimension of (B, F, N, D) that the mean is over
AXES = {"space": 2, "time": 1}


def why_not(
    x: Tensor, shift: Tensor, scale: Tensor, axis: str, eps: float = 1e-6, out_dtype: torch.dtype | None = None
) -> str | None:
    return why_not_normed(x, shift, scale, eps, out_dtype)


def pooled_norm_fwd(x: Tensor, shift: Tensor, scale: Tensor, axis: str, eps: float, out_dtype: torch.dtype) -> Tensor:
    """x (B, F, N, D) -> (B, F, 1, D) for space, (B, 1, N, D) for time, in out_dtype."""
    runs = runs_of(x, axis)
    h = torch.empty((*runs.shape[:2], x.shape[3]), dtype=out_dtype)
    if h.numel():
        _ext.load().pooled_norm_fwd(
            rows(runs), NO_ROWS, groups(shift), groups(scale), (h.data_ptr(), CODES[h.dtype]), 0,
            _sizes(runs, scale), eps, torch.get_num_threads(),
        )  # fmt: skip
    return h.unsqueeze(AXES[axis])


def pooled_norm_bwd(dh: Tensor, x: Tensor, scale: Tensor, axis: str, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dshift, dscale) in the dtypes of x and scale; what a row is normed by is computed again."""
    dx = torch.empty(x.shape, dtype=x.dtype)
    if not x.numel():
        return dx, torch.zeros_like(scale), torch.zeros_like(scale)
    runs, wide = runs_of(x, axis), torch.promote_types(x.dtype, torch.float32)
    mean = torch.empty((*runs.shape[:2], x.shape[3]), dtype=wide)
    _ext.load().pooled_norm_bwd(
        rows(runs), rows(runs_of(dx, axis)), NO_GROUPS, groups(scale), (dh.data_ptr(), CODES[dh.dtype]),
        mean.data_ptr(), _sizes(runs, scale), eps, torch.get_num_threads(),
    )  # fmt: skip
    return dx, *summed(dh, mean, scale)


def runs_of(x: Tensor, axis: str) -> Tensor:
    """x (B, F, N, D) with the axis of the mean third: the rows of a mean are one after the other."""
    return x if axis == "space" else x.transpose(1, 2)


def summed(dh: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(dshift, dscale) of dh and the means of LN(x), both of D values a mean, summed over a group's means."""
    by_group = dh.reshape(scale.shape[0], -1, scale.shape[1]).to(mean.dtype)
    dscale = (by_group * mean.view(by_group.shape)).sum(1)
    return by_group.sum(1).to(scale.dtype), dscale.to(scale.dtype)


def _sizes(runs: Tensor, scale: Tensor) -> tuple[int, int, int, int]:
    return runs.shape[0] * runs.shape[1], runs.shape[2], runs.shape[3], scale.shape[0]
