"""Residuals left pending, for the next norm of x to add in its own pass over x."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latte_fast import ops
from latte_fast.modules.linear8 import Rows8, op8, precision_of


class Pending(NamedTuple):
    """The residual gate * (y + y_bias), which is still to be added to x."""

    y: Tensor  # (B, F, N, D)
    gate: Tensor  # (G, D)
    y_bias: Tensor | None  # (D,)


def resolve(x: Tensor, pending: Pending | None) -> Tensor:
    """Adds a pending residual where no norm follows."""
    if pending is None:
        return x
    y = pending.y if pending.y_bias is None else pending.y + pending.y_bias
    return ops.gate_residual(x, y, pending.gate)


def add_and_norm(
    x: Tensor,
    pending: Pending | None,
    shift: Tensor,
    scale: Tensor,
    pos: Tensor | None = None,
    eps: float = 1e-6,
    readers: Sequence[Any] = (),
) -> tuple[Tensor, Any]:
    """Returns x with its pending residual and position added, and its modulated norm in the modulation's dtype.

    The norm is Rows8 where all its readers, the layers that it is for, have 8-bit weights.
    """
    eight = precision_of(readers)
    if pending is None:
        x = x if pos is None else x + pos.to(x.dtype)
        if eight is not None:
            values, row_scale = op8("norm_modulate", eight, x)(x, *smoothed(shift, scale, readers), eps)
            return x, Rows8(values, row_scale, shift.dtype)
        return x, ops.norm_modulate(x, shift, scale, eps, out_dtype=shift.dtype)
    gate = pending.gate
    if gate.shape[0] != shift.shape[0]:
        # one has a row per frame, as in joint models, the other a row per clip or, if plain, a single row
        groups = max(gate.shape[0], shift.shape[0])
        gate, shift, scale = (v.repeat_interleave(groups // v.shape[0], 0) for v in (gate, shift, scale))
    if eight is not None:
        op, y, bias = op8("gate_residual_norm_modulate", eight, x), pending.y, pending.y_bias
        x, values, row_scale = op(x, y, gate, *smoothed(shift, scale, readers), eps, y_bias=bias, pos=pos)
        return x, Rows8(values, row_scale, shift.dtype)
    return ops.gate_residual_norm_modulate(x, pending.y, gate, shift, scale, eps, y_bias=pending.y_bias, pos=pos)


def smoothed(shift: Tensor, scale: Tensor, readers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Returns a modulation (G, D) whose result is multiplied by the factor that the readers' weights are divided by.

    In fp32: 16 bits of (1 + scale) * factor - 1 would lose what the rounding to 8 bits gains.
    """
    factor = readers[0].input_factor
    return (shift, scale) if factor is None else (shift * factor, torch.addcmul(factor - 1, scale, factor))
