"""Launches the C++ kernel of small_linear."""

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import NO_GROUPS, NO_ROWS, groups, rows


def why_not(*args: object) -> str | None:
    return None


def small_linear_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    gelu: bool,
    eps: float,
) -> Tensor:
    """x (M, D), weight (N, D) -> (M, N)."""
    y = torch.empty((len(x), len(weight)), dtype=x.dtype)
    if len(x):
        vectors = (NO_GROUPS if v is None else groups(v) for v in (bias, norm_weight, norm_bias))
        sizes = len(x), *reversed(weight.shape), int(gelu)
        _ext.load().small_linear(
            rows(x), NO_ROWS if residual is None else rows(residual), rows(y), groups(weight), *vectors, sizes, eps,
            torch.get_num_threads(),
        )  # fmt: skip
    return y
