"""Linear layers whose weights alone are int8: for decoding, which takes as long as its weights take to be read."""

from typing import Any

import torch
from torch import Tensor, nn

from latte_fast import ops
from latte_fast.backends import autocast_dtype
from latte_fast.modules.hooks import is_untouched
from latte_fast.modules.linear8 import Stored8
from latte_fast.ops.registration import records

# least scale of a row, which a row of zeros has, and the largest integer
LEAST, MOST = 2.0**-100, 127


def rounded_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the rows of a weight (N, K) as integers of -127 .. 127, and their scales (N,): their maxima over 127.

    Rounded to nearest, ties to even. A row of zeros stays zeros.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = (wide.abs().amax(1).float() / MOST).clamp_min(LEAST)
    return (wide / scale[:, None]).round().clamp(-MOST, MOST).to(torch.int8), scale


class LinearInt8(Stored8):
    """x w^T + b of an int8 weight (N, K) with a scale an output channel; x and the result stay as they are.

    1 to 8 rows of x share one reading of the weight; more are a product in fp32, for which it is widened each time.

    Args:
        layer: linear layer whose weight is rounded; on meta it gives sizes alone.
        keep: whether the layer is kept, for `before`.
    """

    precision = "int8"

    def __init__(self, layer: nn.Linear, keep: bool = True):
        with torch.no_grad():
            values, scale = rounded_int8(layer.weight)
        super().__init__(layer, keep, values, scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError(
                "LinearInt8: 8-bit layers do not train; model.eval(), or latte_fast.unquantize(model) before"
            )
        return product_int8(x, self.weight, self.bias, self.weight_scale)


def product_int8(x: Tensor, weight: Tensor, bias: Tensor | None, weight_scale: Tensor) -> Tensor:
    """Returns x w^T + b for x (..., K) and an int8 weight (N, K) with scales (N,)."""
    if records(x, *(() if bias is None else (bias,))):
        raise ValueError("LinearInt8: has no gradient; call it under torch.no_grad()")
    dtype = autocast_dtype(x.device.type) or x.dtype
    bias = None if bias is None else bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        out = ops.small_linear(x.to(dtype).flatten(0, -2), weight, bias, weight_scale=weight_scale)
    return out.unflatten(0, x.shape[:-1])


def is_int8(layer: Any) -> bool:
    """Returns whether a layer is a LinearInt8 that nobody listens to."""
    return type(layer) is LinearInt8 and is_untouched(layer)
