"""linear_gelu: tanh-GELU(x w^T + b), and bias_gelu, the pass over a linear layer's result that it trains with."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from latte_fast import backends
from latte_fast.ops.checks import check_rows, check_rows_like, check_weight, checked_vector
from latte_fast.ops.linear_layer import gelu_in_product, linear_layer
from latte_fast.ops.registration import LIBRARY, KernelOp, call_directly, empty, records
from latte_fast.reference.functional import bias_gelu_ref


def linear_gelu(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """tanh-GELU(x w^T + b).

    The GEMM runs without its bias and bias_gelu adds it, keeping the pre-activation for the backward. On CUDA without
    gradients the GEMM's own epilogue does both, under torch.compile too.

    Args:
        x: (..., D).
        w: (M, D).
        b: (M,) or None.
    """
    check_rows_like("linear_gelu", "x", x)
    check_weight("linear_gelu", "w", w, x)
    if b is not None:
        b = checked_vector("linear_gelu", "b", b, x, w.shape[0], "M")
    if b is not None and _epilogue_serves(x, w, b):
        return _GELU_IN_PRODUCT(x, w, b) if torch.compiler.is_compiling() else _gelu_in_product(x, w, b)
    return bias_gelu(linear_layer(x, w), b)


def _gelu_in_product(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    found = gelu_in_product(x, w, b)
    if found is not None:
        return found
    out = torch._addmm_activation(b, x.flatten(0, -2), w.t(), use_gelu=True)
    return out.unflatten(0, x.shape[:-1])


# an op, as torch.compile would take _addmm_activation apart, into a product and a pass over its result
LIBRARY.define("linear_gelu(Tensor x, Tensor w, Tensor b) -> Tensor")
LIBRARY.impl("linear_gelu", _gelu_in_product, "CompositeExplicitAutograd")
torch.library.register_fake(
    "latte_fast::linear_gelu", lambda x, w, b: x.new_empty(*x.shape[:-1], w.shape[0]), lib=LIBRARY
)
_GELU_IN_PRODUCT = torch.ops.latte_fast.linear_gelu.default


@register_flop_formula(torch.ops.latte_fast.linear_gelu)
def _flops(x: Sequence[int], w: Sequence[int], b: Sequence[int], out_shape: object = None) -> int:
    return 2 * math.prod(x) * w[0]


def on_cuda(x: Tensor) -> bool:
    return x.is_cuda


def _epilogue_serves(x: Tensor, w: Tensor, b: Tensor) -> bool:
    """On CUDA, since on the CPU it is erf-GELU; a bias that would broadcast is left to bias_gelu, which refuses it."""
    return (
        on_cuda(x)
        and not backends.is_forced("bias_gelu")
        # the op that is compiled has no derivative: with one, bias_gelu keeps the sum before the GELU
        and (not records(x, w, b) if torch.compiler.is_compiling() else call_directly(x, w, b))
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
    b = u.new_zeros(u.shape[-1]) if b is None else b
    b = checked_vector("bias_gelu", "b", b, u, u.shape[-1], "M").to(u.dtype)
    return _OP(u.contiguous(), b)


_OP = KernelOp(
    "bias_gelu",
    "(Tensor u, Tensor b, str backend) -> Tensor a",
    "(Tensor da, Tensor u, Tensor b, str backend) -> (Tensor du, Tensor db)",
    fake=lambda u, b: empty(u),
    reference=bias_gelu_ref,
    example=lambda sizes: {"u": sizes.tokens(widths=4), "b": sizes.randn(4 * sizes.width)},
    elementwise=12,
)
