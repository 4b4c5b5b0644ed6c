"""small_linear: a linear layer on a few rows, which takes as long as its weights take to be read."""

import torch
from torch import Tensor

from latte_fast.ops.checks import check_device, check_rows, check_tensor, checked_number, checked_vector
from latte_fast.ops.registration import KernelOp, why_no_gradient
from latte_fast.reference.functional import small_linear_ref

_NAME = "small_linear"
# rows that share one reading of the weights; more are a matrix product
_FEW = 8


def small_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
    eps: float = 1e-5,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """act(LN(x) w^T + b) + residual.

    For few rows: kernels serve 1 to 8 without a gradient, and read the weights once. GELU is exact, by erf.

    Args:
        x: (M, D).
        weight: (N, D), any row stride, of x's dtype as all others; or int8 with `weight_scale`.
        bias: (N,), or None.
        norm_weight: (D,), which with norm_bias applies LayerNorm to x first; None leaves it out.
        norm_bias: (D,), or None as norm_weight is.
        residual: (M, N), added last, or None.
        gelu: whether GELU comes before the residual.
        eps: added to the variance.
        weight_scale: (N,) fp32, for an int8 weight: w is the weight's integers times the scale of their row, by which
            sums of products are multiplied; None for a weight of x's dtype.
    """
    check_rows(_NAME, "x", x)
    if x.dim() != 2:
        raise ValueError(f"{_NAME}: x must be (M, D), got {tuple(x.shape)}")
    if weight_scale is None:
        check_tensor(_NAME, "weight", weight)
    elif not isinstance(weight, Tensor) or weight.dtype != torch.int8:
        got = getattr(weight, "dtype", type(weight).__name__)
        raise TypeError(f"{_NAME}: weight must be torch.int8 where weight_scale is given, got {got}")
    depth = x.shape[1]
    if weight.dim() != 2 or weight.shape[1] != depth or not len(weight):
        raise ValueError(f"{_NAME}: weight must be (N, D) with D = {depth}, got {tuple(weight.shape)}")
    if weight.stride(1) != 1 and depth != 1:
        raise ValueError(f"{_NAME}: weight must have a contiguous last dim, got strides {weight.stride()}")
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError(f"{_NAME}: norm_weight and norm_bias must both be given or both be None, got one")
    if bias is not None:
        bias = checked_vector(_NAME, "bias", bias, x, len(weight), "N")
    if norm_weight is not None and norm_bias is not None:
        norm_weight = checked_vector(_NAME, "norm_weight", norm_weight, x, depth)
        norm_bias = checked_vector(_NAME, "norm_bias", norm_bias, x, depth)
    if residual is not None:
        check_rows(_NAME, "residual", residual)
        if residual.shape != (len(x), len(weight)):
            shape = (len(x), len(weight))
            raise ValueError(f"{_NAME}: residual must be (M, N) = {shape}, got {tuple(residual.shape)}")
    if weight_scale is not None:
        weight_scale = checked_vector(_NAME, "weight_scale", weight_scale, x, len(weight), "N")
        if weight_scale.dtype != torch.float32:
            raise TypeError(f"{_NAME}: weight_scale must be torch.float32, got {weight_scale.dtype}")
    others = {"weight": weight, "bias": bias, "norm_weight": norm_weight, "norm_bias": norm_bias, "residual": residual}
    for name, t in others.items():
        if t is not None:
            check_device(_NAME, name, t, x)
            if weight_scale is not None and name == "weight":
                continue
            if t.dtype != x.dtype:
                raise TypeError(f"{_NAME}: {name} must have x's dtype {x.dtype}, got {t.dtype}")
    if not isinstance(gelu, bool):
        raise TypeError(f"{_NAME}: gelu must be True or False, got {type(gelu).__name__}")
    eps = checked_number(_NAME, "eps", eps)
    return _OP(x, weight, bias, norm_weight, norm_bias, residual, gelu, eps, weight_scale)


def _why_not(x: Tensor, *others: object) -> str | None:
    if len(x) > _FEW:
        return f"the kernels serve up to {_FEW} rows, got {len(x)}"
    return why_no_gradient(x, *others)


_OP = KernelOp(
    _NAME,
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, Tensor? residual, bool gelu, "
    "float eps, Tensor? weight_scale, str backend) -> Tensor y",
    "",
    fake=lambda x, weight, *others: x.new_empty(len(x), len(weight)),
    reference=small_linear_ref,
    why_not=_why_not,
    # the first half of an MLP on one token
    example=lambda sizes: {
        "x": sizes.randn(1, sizes.width),
        "weight": sizes.randn(4 * sizes.width, sizes.width),
        "bias": sizes.randn(4 * sizes.width),
        "norm_weight": sizes.randn(sizes.width),
        "norm_bias": sizes.randn(sizes.width),
        "residual": None,
        "gelu": True,
        "eps": 1e-5,
        "weight_scale": None,
    },
    more_examples=lambda sizes: [
        (
            "MLP's second",
            {
                "x": sizes.randn(1, 4 * sizes.width),
                "weight": sizes.randn(sizes.width, 4 * sizes.width),
                "bias": sizes.randn(sizes.width),
                "norm_weight": None,
                "norm_bias": None,
                "residual": sizes.randn(1, sizes.width),
                "gelu": False,
                "eps": 1e-5,
                "weight_scale": None,
            },
        )
    ],
    flops=lambda x, weight, *others: 2 * x[0] * weight[0] * weight[1],
)
