"""Linear layers of 8-bit weights and inputs: rows and output channels have a scale each.

Products of fp8 are accumulated in fp32, those of int8 exactly.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast import backends, ops
from latte_fast.modules.hooks import is_changed, is_untouched
from latte_fast.ops import onednn
from latte_fast.ops.registration import call_directly

Rope = tuple[Tensor, Tensor]
FP8 = torch.float8_e4m3fn
# what the products' layouts are made of: input and output widths are multiples of it, rows are filled up to one
STEP = 16


class Rows8(NamedTuple):
    """Rows of 8-bit values with a scale each; values * scale are what they stand for, of uint8 values less 128."""

    values: Tensor  # (..., D)
    scale: Tensor  # (..., 1), fp32
    dtype: torch.dtype  # what a layer's result has

    def dequantized(self) -> Tensor:
        return (self.values.float() - (128 if self.values.dtype == torch.uint8 else 0)) * self.scale


def rows8(x: Tensor, precision: str = "fp8") -> Rows8:
    values, scale = op8("rows", precision, x)(x)
    return Rows8(values, scale, x.dtype)


def op8(name: str, precision: str, x: Tensor) -> Callable[..., Any]:
    """Returns the op whose result leaves as rows of a precision, in the form that x's device multiplies."""
    op = getattr(ops, f"{name}_{precision}")
    return functools.partial(op, unsigned=True) if precision == "int8" and by_onednn(x) and unsigned() else op


def by_onednn(x: Tensor) -> bool:
    """Returns whether products of integers are oneDNN's, on the CPU in plain eager code."""
    return x.is_cpu and call_directly() and not backends.is_forced("linear_int8") and onednn.why_not() is None


def unsigned() -> bool:
    return onednn.wants_unsigned()


def why_emulated(precision: str) -> str | None:
    """Returns why the CPU has no products of a precision, None where it has."""
    return "processors do not multiply e4m3" if precision == "fp8" else onednn.why_not()


class Stored8(nn.Module):
    """A linear layer's weight (N, K) as 8-bit values with a scale an output channel.

    Moves between devices as other modules do; casts leave the weight and its scale as they are.

    Args:
        layer: linear layer that is replaced.
        keep: whether the layer is kept, for `before`.
        values: its weight in 8 bits.
        scale: scales (N,).
    """

    precision: str
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

    def dequantized(self) -> Tensor:
        return self.weight.float() * self.weight_scale[:, None]

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, {self.precision}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Stored8":
        # as integers they are moved, but not cast
        seen = {name: t.dtype for name, t in self._buffers.items() if t is not None}
        for name, dtype in seen.items():
            self._buffers[name] = self._buffers[name].view(torch.uint8 if dtype.itemsize == 1 else torch.int32)
        super()._apply(fn, recurse)
        for name, dtype in seen.items():
            self._buffers[name] = self._buffers[name].view(dtype)
        if self._kept:
            self._kept[0]._apply(fn)
            self.bias = self._kept[0].bias
        return self


class Linear8(Stored8):
    """x w^T + b of an 8-bit weight (N, K) and 8-bit rows of x, a tensor that is rounded here or Rows8 made before.

    On a CPU that multiplies integers the weight lies in memory as oneDNN packs it once it was used; `weight` unpacks
    it.

    Args:
        layer: linear layer whose weight is rounded; on meta it gives sizes alone.
        keep: whether the layer is kept, for `before`.
        rounded: 8-bit values and scales (N, 1) of the weight, where they are known.
        precision: "fp8" (e4m3) or "int8", of weight and rows.
        input_factor: what x's channels are multiplied by before they are rounded, (K,) fp32, where the weight's columns
            were divided by it; Rows8 that are given have it in them.
    """

    input_factor: Tensor | None

    def __init__(
        self,
        layer: nn.Linear,
        keep: bool = True,
        rounded: tuple[Tensor, Tensor] | None = None,
        precision: str = "fp8",
        input_factor: Tensor | None = None,
    ):
        with torch.no_grad():
            values, scale = getattr(ops, f"rows_{precision}")(layer.weight) if rounded is None else rounded
        super().__init__(layer, keep, values, scale.flatten())
        # its own, as files hold no tensor twice
        self.register_buffer("input_factor", None if input_factor is None else input_factor.clone())
        self.precision = precision

    def forward(self, x: Tensor | Rows8) -> Tensor:
        return self.product(x, self.bias)

    def product(self, x: Tensor | Rows8, bias: Tensor | None = None) -> Tensor:
        """Returns x w^T, plus a bias where one is given."""
        rows = self.rows_of(x)
        if self.packs(rows):
            bias = None if bias is None else bias.detach()
            return onednn.linear(rows.values, rows.scale, self.packed(), self.weight_scale, bias, rows.dtype)
        return product(rows, self.weight, self.weight_scale, bias)

    def mlp(self, x: Tensor | Rows8, fc2: "Linear8") -> Tensor | None:
        """Returns fc2, without its bias, of tanh-GELU of the layer's result; None where no kernel does all of it."""
        if not by_onednn(x.values if isinstance(x, Rows8) else x):
            return None
        rows = self.rows_of(x)
        if fc2.training or not self.packs(rows):
            return None
        return onednn.mlp(rows.values, rows.scale, self.as_packed(), fc2.as_packed(), rows.dtype)

    def attention(self, x: Tensor | Rows8, heads: int, axis: str, rope: Rope | None) -> Tensor:
        """Returns attention over an axis of the layer's result, which is packed q, k and v."""
        rows = self.rows_of(x)
        out = None
        if self.packs(rows):
            bias = None if self.bias is None else self.bias.detach()
            args = (rows.values, rows.scale, self.packed(), self.weight_scale, bias, rows.dtype)
            out = onednn.attention(*args, heads, axis, rope)
        if out is None:
            qkv = self(rows).unflatten(-1, (3, heads, -1))  # (B, F, N, 3, H, K)
            out = ops.axis_attention_qkv(qkv, axis, rope)
        return out

    def rows_of(self, x: Tensor | Rows8) -> Rows8:
        if self.training:
            raise RuntimeError(
                "Linear8: 8-bit layers do not train; model.eval(), or latte_fast.unquantize(model) before"
            )
        if isinstance(x, Rows8):
            return x
        factor = self.input_factor
        # in fp32, so that x is rounded once
        return rows8(x if factor is None else x * factor, self.precision)._replace(dtype=x.dtype)

    def dequantized(self) -> Tensor:
        """Returns the weight that the 8-bit values stand for, (N, K) in fp32."""
        weight = super().dequantized()
        return weight if self.input_factor is None else weight * self.input_factor

    def packs(self, rows: Rows8) -> bool:
        # int8 rows without AMX would end in oneDNN's reference code
        return self.precision == "int8" and by_onednn(rows.values) and (rows.values.dtype == torch.uint8) == unsigned()

    def as_packed(self) -> onednn.Layer:
        bias = None if self.bias is None else self.bias.detach()
        return onednn.Layer(self.packed(), self.weight_scale, bias, self.input_factor)

    def packed(self) -> Tensor:
        """Returns the weight as oneDNN packs it, which from now on takes its place in memory."""
        packed = self.__dict__.get("_packed")
        if packed is None:
            packed = self.__dict__["_packed"] = onednn.pack(self.weight)
            del self._buffers["weight"]
        return packed

    def unpack(self) -> None:
        """Puts the weight back as a buffer, to be moved, copied or replaced."""
        packed = self.__dict__.pop("_packed", None)
        if packed is not None:
            self._buffers["weight"] = onednn.unpack(packed)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "_packed" in self.__dict__:
            return onednn.unpack(self.__dict__["_packed"])
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self.unpack()
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        self.unpack()
        return self.__dict__.copy()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linear8":
        self.unpack()
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if f"{prefix}weight" not in destination:
            destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)


def product(rows: Rows8, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns rows w^T + bias in rows.dtype; the CPU multiplies fp8 in fp32, and int8 so that its sums are exact."""
    if rows.values.dtype != FP8:
        bias = None if bias is None else bias.detach()
        with torch.autocast(rows.values.device.type, enabled=False):
            return ops.linear_int8(rows.values, rows.scale, weight, weight_scale, bias, rows.dtype)
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


def have_one_factor(layers: Sequence[Any]) -> bool:
    """Returns whether Linear8s read an input that is multiplied by one factor, or all by none."""
    first, *others = (layer.input_factor for layer in layers)
    return all(first is f is None or (first is not None and f is not None and torch.equal(first, f)) for f in others)


def precision_of(readers: Sequence[Any]) -> str | None:
    """Returns the precision that all layers have which read a tensor; None where one does not take 8-bit rows."""
    if not readers or not all(is_8bit(layer) for layer in readers):
        return None
    first = readers[0].precision
    return first if all(layer.precision == first for layer in readers) else None
