"""gate_residual: x + gate * y."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.ops.checks import check_groups, check_like, check_rows, partners
from latte_fast.ops.platforms import kernel_probes
from latte_fast.ops.registration import call_directly, register_gradient, register_op
from latte_fast.reference.functional import gate_residual_ref


def gate_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y, in x's dtype.

    Args:
        x: (..., D), any leading strides; may be fp32 beside a 16-bit y and gate.
        y: as x.
        gate: (G, D), G dividing the rows of x; group g gates the g-th run of rows.
    """
    check_rows("gate_residual", "x", x)
    check_like("gate_residual", "y", y, x)
    check_groups("gate_residual", x, gate=gate)
    y, gate = partners("gate_residual", x, y=y, gate=gate)
    backend = backends.choose("gate_residual", x, y, gate)
    if backend == "reference":
        return gate_residual_ref(x, y, gate)
    if call_directly(x, y, gate):
        return _launchers(backend).gate_residual_fwd(x, y, gate)
    return torch.ops.latte_fast.gate_residual.default(x, y, gate, backend)


def _launchers(backend: str) -> ModuleType:
    if backend == "triton":
        from latte_fast.kernels import gate_residual as launchers
    else:
        from latte_fast._ext import gate_residual as launchers
    return launchers


def _forward(x: Tensor, y: Tensor, gate: Tensor, backend: str) -> Tensor:
    return _launchers(backend).gate_residual_fwd(x, y, gate)


def _forward_fake(x: Tensor, y: Tensor, gate: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _backward(dout: Tensor, y: Tensor, gate: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return _launchers(backend).gate_residual_bwd(dout.contiguous(), y, gate)


def _backward_fake(dout: Tensor, y: Tensor, gate: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), gate.new_empty(gate.shape)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, y, gate, ctx.backend = inputs
    ctx.save_for_backward(y, gate)


def _gradient(ctx: Any, dout: Tensor) -> tuple:
    dy, dgate = torch.ops.latte_fast.gate_residual_backward.default(dout, *ctx.saved_tensors, ctx.backend)
    return dout, dy, dgate, None


register_op("gate_residual", "(Tensor x, Tensor y, Tensor gate, str backend) -> Tensor", _forward, _forward_fake)
register_op(
    "gate_residual_backward",
    "(Tensor dout, Tensor y, Tensor gate, str backend) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)
register_gradient("gate_residual", _setup, _gradient)
backends.register(
    "gate_residual",
    kernel_probes(_launchers),
)
