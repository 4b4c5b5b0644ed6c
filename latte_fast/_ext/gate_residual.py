"""Launches the C++ kernels of gate_residual."""

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.arguments import NO_GROUPS, NO_ROWS, addressable, groups, rows, shape


def why_not(x: Tensor, y: Tensor, gate: Tensor) -> str | None:
    if (x.dtype == torch.float64) != (y.dtype == torch.float64):
        return f"float64 needs every tensor in float64, got x {x.dtype} and y {y.dtype}"
    return None


def gate_residual_fwd(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    if out.numel():
        x, y = addressable(x), addressable(y)
        _ext.load().gate_residual_fwd(
            rows(x), rows(y), NO_ROWS, rows(out), NO_ROWS, groups(gate), NO_GROUPS, NO_GROUPS, NO_GROUPS,
            shape(x, gate), 0.0, torch.get_num_threads(),
        )  # fmt: skip
    return out


def gate_residual_bwd(dout: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    dy = torch.empty(y.shape, dtype=y.dtype)
    if not y.numel():
        return dy, torch.zeros_like(gate)
    dgate = torch.empty(gate.shape, dtype=gate.dtype)
    dout, y = addressable(dout), addressable(y)
    _ext.load().gate_residual_bwd(
        rows(dout), NO_ROWS, NO_ROWS, rows(y), NO_ROWS, rows(dy), groups(gate), NO_GROUPS, NO_GROUPS,
        groups(dgate), NO_GROUPS, NO_GROUPS, NO_GROUPS, shape(y, gate), 0.0, torch.get_num_threads(),
    )  # fmt: skip
    return dy, dgate
