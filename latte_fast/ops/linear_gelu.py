"""linear_gelu: tanh-GELU(x w^T + b), and bias_gelu, the pass over a linear layer's result that it trains with."""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latte_fast import backends
from latte_fast.ops.checks import check_rows, check_weight, checked_vector
from latte_fast.ops.platforms import kernel_probes
from latte_fast.ops.registration import call_directly, register_gradient, register_op
from latte_fast.reference.functional import bias_gelu_ref


def linear_gelu(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """tanh-GELU(x w^T + b).

    The GEMM runs without its bias and bias_gelu adds it, keeping the pre-activation for the backward. On CUDA without
    gradients the GEMM's own epilogue does both.

    Args:
        x: (..., D).
        w: (M, D).
        b: (M,) or None.
    """
    check_weight("linear_gelu", "w", w, x)
    if b is not None and _epilogue_serves(x, w, b):
        out = torch._addmm_activation(b, x.flatten(0, -2), w.t(), use_gelu=True)
        return out.unflatten(0, x.shape[:-1])
    return bias_gelu(F.linear(x, w), b)


def _epilogue_serves(x: Tensor, w: Tensor, b: Tensor) -> bool:
    """On CUDA only, for on the CPU the operator computes the erf form; not where bias_gelu was asked for by name.

    A bias of another shape would broadcast there: bias_gelu refuses it.
    """
    return (
        x.is_cuda
        and not backends.forced("bias_gelu")
        and call_directly(x, w, b)
        and x.dtype == w.dtype == b.dtype
        and x.dim() > 1
        and b.shape == w.shape[:1]
    )


def bias_gelu(u: Tensor, b: Tensor | None = None) -> Tensor:
    """tanh-GELU(u + b).

    Args:
        u: (..., M) contiguous, a linear layer's result without its bias.
        b: (M,) or None.
    """
    check_rows("bias_gelu", "u", u)
    if b is None:
        b = u.new_zeros(u.shape[-1])
    b = checked_vector("bias_gelu", "b", b, u, u.shape[-1], "M").to(u.dtype)
    u = u.contiguous()
    backend = backends.choose("bias_gelu", u, b)
    if backend == "reference":
        return bias_gelu_ref(u, b)
    if call_directly(u, b):
        return _launchers(backend).bias_gelu_fwd(u, b)
    return torch.ops.latte_fast.bias_gelu.default(u, b, backend)


def _launchers(backend: str) -> ModuleType:
    if backend == "triton":
        from latte_fast.kernels import bias_gelu as launchers
    else:
        from latte_fast._ext import bias_gelu as launchers
    return launchers


def _forward(u: Tensor, b: Tensor, backend: str) -> Tensor:
    return _launchers(backend).bias_gelu_fwd(u, b)


def _forward_fake(u: Tensor, b: Tensor, backend: str) -> Tensor:
    return u.new_empty(u.shape)


def _backward(da: Tensor, u: Tensor, b: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return _launchers(backend).bias_gelu_bwd(da.contiguous(), u, b)


def _backward_fake(da: Tensor, u: Tensor, b: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), b.new_empty(b.shape)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    u, b, ctx.backend = inputs
    ctx.save_for_backward(u, b)


def _gradient(ctx: Any, da: Tensor) -> tuple:
    return (*torch.ops.latte_fast.bias_gelu_backward.default(da, *ctx.saved_tensors, ctx.backend), None)


register_op("bias_gelu", "(Tensor u, Tensor b, str backend) -> Tensor", _forward, _forward_fake)
register_op(
    "bias_gelu_backward", "(Tensor da, Tensor u, Tensor b, str backend) -> (Tensor, Tensor)", _backward, _backward_fake
)
register_gradient("bias_gelu", _setup, _gradient)
backends.register(
    "bias_gelu",
    kernel_probes(_launchers),
)
