"""Launches the C++ kernel of small_linear."""

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import CODES


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
    weight_scale: Tensor | None = None,
) -> Tensor:
    """x (M, D), weight (N, D), weight_scale (N,) -> (M, N)."""
    (M, D), N = x.shape, weight.shape[0]
    y = torch.empty((M, N), dtype=x.dtype)
    if M:
        # a step of decoding calls this a hundred times
        pointers = (
            x.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if norm_weight is None else norm_weight.data_ptr(),
            0 if norm_bias is None else norm_bias.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            y.data_ptr(),
            0 if weight_scale is None else weight_scale.data_ptr(),
        )
        strides = x.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0)
        sizes = CODES[x.dtype], M, D, N, int(gelu)
        _ext.load().small_linear(pointers, strides, sizes, eps, torch.get_num_threads())
    return y
