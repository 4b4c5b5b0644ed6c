"""Linear layers of 8-bit weights: rows and output channels have a scale each, products are accumulated in fp32."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast import backends, ops
from latte_fast.modules.hooks import is_changed, is_untouched

FP8 = torch.float8_e4m3fn
# what the products' layouts are made of: input and output widths are multiples of it, rows are filled up to one
STEP = 16


class Rows8(NamedTuple):
    """Rows of 8-bit values with a scale each; values * scale are what they stand for."""

    values: Tensor  # (..., D)
    scale: Tensor  # (..., 1), fp32
    dtype: torch.dtype  # what a layer's result has


def rows8(x: Tensor) -> Rows8:
    return Rows8(*ops.rows_fp8(x), x.dtype)


class Stored8(nn.Module):
    """A linear layer's weight (N, K) as 8-bit values with a scale an output channel.

    Moves between devices as other modules do; casts leave the weight and its scale as they are.

    Args:
        layer: linear layer that is replaced.
        keep: whether the layer is kept, for `before`.
        values: its weight in 8 bits.
        scale: scales (N,).
    """

    precision: ClassVar[str]
    weight: Tensor
    weight_scale: Tensor

    def __init__(self, layer: nn.Linear, keep: bool, values: Tensor, scale: Tensor):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", values)
        self.register_buffer("weight_scale", scale)
        self.bias = layer.bias
        # in a tuple, so that it is no child of this module
        self._kept = (layer,) if keep else ()
        self.train(layer.training)

    @property
    def before(self) -> nn.Linear | None:
        """The layer that this one was made of, if it was kept."""
        return self._kept[0] if self._kept else None

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, {self.precision}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Stored8":
        # as integers they are moved, but not cast
        dtypes = {"weight": torch.uint8, "weight_scale": torch.int32}
        seen = {name: self._buffers[name] for name in dtypes}
        for name, dtype in dtypes.items():
            self._buffers[name] = seen[name].view(dtype)
        super()._apply(fn, recurse)
        for name in dtypes:
            self._buffers[name] = self._buffers[name].view(seen[name].dtype)
        if self._kept:
            self._kept[0]._apply(fn)
            self.bias = self._kept[0].bias
        return self


class Linear8(Stored8):
    """x w^T + b of an e4m3 weight (N, K) and e4m3 rows of x, a tensor that is rounded here or Rows8 made before.

    Args:
        layer: linear layer whose weight is rounded; on meta it gives sizes alone.
        keep: whether the layer is kept, for `before`.
        rounded: 8-bit values and scales (N, 1) of the weight, where they are known.
    """

    precision = "fp8"

    def __init__(self, layer: nn.Linear, keep: bool = True, rounded: tuple[Tensor, Tensor] | None = None):
        with torch.no_grad():
            values, scale = ops.rows_fp8(layer.weight) if rounded is None else rounded
        super().__init__(layer, keep, values, scale.flatten())

    def forward(self, x: Tensor | Rows8) -> Tensor:
        return self.product(x, self.bias)

    def product(self, x: Tensor | Rows8, bias: Tensor | None = None) -> Tensor:
        """Returns x w^T, plus a bias where one is given."""
        if self.training:
            raise RuntimeError(
                "Linear8: 8-bit layers do not train; model.eval(), or latte_fast.unquantize(model) before"
            )
        rows = x if isinstance(x, Rows8) else rows8(x)
        return product(rows, self.weight, self.weight_scale, bias)


def product(rows: Rows8, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns rows w^T + bias in rows.dtype; the CPU multiplies the 8-bit values in fp32."""
    values, scale = rows.values.flatten(0, -2), rows.scale.flatten(0, -2)
    if values.is_cuda:
        out = _on_tensor_cores(values, scale, weight, weight_scale, bias)
    else:
        with torch.autocast(values.device.type, enabled=False):
            out = F.linear(values.float(), weight.float()).mul_(scale).mul_(weight_scale)
        out = out if bias is None else out + bias
    return out.to(rows.dtype).unflatten(0, rows.values.shape[:-1])


def _on_tensor_cores(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    count = values.shape[0]
    extra = -count % STEP
    if extra:
        values, scale = F.pad(values.view(torch.uint8), (0, 0, 0, extra)).view(FP8), F.pad(scale, (0, 0, 0, extra))
    inside = bias is not None and (torch.compiler.is_compiling() or bias_fits(values.device))
    out = torch._scaled_mm(
        values,
        weight.t(),
        scale,
        weight_scale[None],
        bias=bias.bfloat16() if inside and bias is not None else None,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )[:count]
    return out if bias is None or inside else out + bias


@functools.cache
def bias_fits(device: torch.device) -> bool:
    """Returns whether this torch adds a bias in the product's epilogue; tried once a device."""
    size = 256
    values, scale = torch.zeros(size, size, device=device).to(FP8), torch.ones(size, 1, device=device)
    bias = torch.zeros(size, device=device, dtype=torch.bfloat16)
    try:
        torch._scaled_mm(values, values.t(), scale, scale.t(), bias, out_dtype=torch.bfloat16, use_fast_accum=True)
    except RuntimeError as error:
        backends.say_once(f"8-bit products: the bias is added by a pass of its own: {str(error).splitlines()[0]}")
        return False
    return True


def is_8bit(layer: Any) -> bool:
    """Returns whether a layer is a Linear8 that nobody listens to."""
    return type(layer) is Linear8 and is_untouched(layer)


def readers_of(module: Any) -> tuple[Any, ...]:
    """Returns the layers that read a sublayer's input, for `add_and_norm`; none where hooks see that input."""
    layers = getattr(module, "readers", ())
    return () if not isinstance(layers, tuple) or is_changed(module) else layers


def all_8bit(readers: Sequence[Any]) -> bool:
    return bool(readers) and all(is_8bit(layer) for layer in readers)
