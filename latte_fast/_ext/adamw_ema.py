"""Launches the C++ kernel of adamw_ema."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import CODES


def why_not(*args: object) -> None:
    """This kernel serves whatever the op accepts."""


def adamw_ema_fwd(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    averages: Sequence[Tensor],
    copies: Sequence[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decay: float,
) -> None:
    """Writes weights, moments, squares, averages and copies in place."""
    addresses = [[t.data_ptr() for t in some] for some in (weights, grads, moments, squares, steps, averages)]
    pointers = zip(*(some or [0] * len(weights) for some in addresses), strict=True)
    copied = [(c.data_ptr(), CODES[c.dtype]) for c in copies] or [(0, 0)] * len(weights)
    tensors = [(*p, *c, w.numel()) for p, c, w in zip(pointers, copied, weights, strict=True)]
    _ext.load().adamw_ema(tensors, (lr, beta1, beta2, eps, weight_decay, decay), torch.get_num_threads())
