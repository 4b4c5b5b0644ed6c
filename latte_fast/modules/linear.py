"""Linear layers whose bias is left to the kernel that reads the result, and layers that share one storage."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast import backends, ops
from latte_fast.modules.hooks import is_untouched
from latte_fast.modules.linear8 import Rows8, by_onednn, is_8bit, op8, precision_of
from latte_fast.ops.joined_linear import are_adjacent, joined_linear
from latte_fast.ops.linear_layer import linear_layer
from latte_fast.ops.registration import records


def is_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Returns whether a layer is a `kind` whose weight may be read directly: no LoRA, no hook, not quantised."""
    return type(layer) is kind and is_untouched(layer) and type(layer.weight) in (nn.Parameter, Tensor)


def weight_of(layer: Any) -> Tensor:
    """Returns a layer's weight, or that of the layer inside an adapter; for its shape, dtype and device."""
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor):
        return weight
    found = next((p for p in layer.parameters() if p.is_floating_point() and p.dim() > 1), None)
    if found is None:
        raise ValueError(f"{type(layer).__name__} must have a floating weight in the place of a linear layer")
    return found


def adds_its_bias(layer: Any, x: Tensor) -> bool:
    """Returns whether a plain layer's GEMM adds the bias at no cost: in its epilogue, on CUDA without gradients.

    With gradients the bias is left to the op that reads the result: its backward sums dy anyway, the GEMM's would need
    a pass of its own. On the CPU the bias is always left to that op: in the GEMM it costs a sixth of the time.
    """
    return on_cuda(x) and not (torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad))


def on_cuda(x: Tensor) -> bool:
    return x.is_cuda


def split_bias(layer: Any, x: Tensor | Rows8) -> tuple[Tensor, Tensor | None]:
    """Returns (x w^T, b) of a plain layer; (layer(x), None) of a replaced one, and where the GEMM adds b at no cost."""
    if is_8bit(layer):
        values = x.values if isinstance(x, Rows8) else x
        return (layer(x), None) if on_cuda(values) else (layer.product(x), layer.bias)
    assert isinstance(x, Tensor)
    if not is_plain(layer):
        return layer(x), None
    if adds_its_bias(layer, x):
        return linear_layer(x, layer.weight, layer.bias), None
    return linear_layer(x, layer.weight), layer.bias


def mlp(fc1: Any, fc2: Any, h: Tensor | Rows8, act: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
    """Applies fc1, tanh-GELU and fc2; returns the result and the bias of fc2 that is still to be added, if any.

    Another activation, or one with hooks, is called in GELU's place. h is Rows8 only where fc1 is an 8-bit layer.
    """
    if act is not None and not (type(act) is nn.GELU and act.approximate == "tanh" and is_untouched(act)):
        return split_bias(fc2, act(fc1(h)))
    if precision_of((fc1, fc2)) == "int8":
        y = fc1.mlp(h, fc2)
        if y is not None:
            return y, fc2.bias
    if is_8bit(fc1) or is_8bit(fc2):
        return split_bias(fc2, _gelu_for(fc2, fc1, h))
    assert isinstance(h, Tensor)
    if is_plain(fc1) and is_plain(fc2) and not adds_its_bias(fc2, h):
        return ops.mlp_layer(h, fc1.weight, fc1.bias, fc2.weight), fc2.bias
    a = ops.linear_gelu(h, fc1.weight, fc1.bias) if is_plain(fc1) else ops.bias_gelu(fc1(h))
    return split_bias(fc2, a)


def _gelu_for(fc2: Any, fc1: Any, h: Tensor | Rows8) -> Tensor | Rows8:
    """Applies fc1 and tanh-GELU where fc1 or fc2 is an 8-bit layer; the result is Rows8 where fc2 is."""
    if is_8bit(fc1):
        u, b = fc1.product(h), fc1.bias
    elif is_plain(fc1):
        u, b = F.linear(h, fc1.weight), fc1.bias
    else:
        u, b = fc1(h), None
    if not is_8bit(fc2):
        return ops.bias_gelu(u, b)
    values, scale = op8("bias_gelu", fc2.precision, u)(u, b, factor=fc2.input_factor)
    return Rows8(values, scale, u.dtype)


def share_storage(layers: Sequence[Any]) -> bool:
    """Moves plain layers' weights into one storage, one after the other, biases too; returns False where it can't.

    The parameters stay the same objects under the same names: `joined` then reads them as one, without a copy.
    """
    if precision_of(layers) is not None:
        join8(layers)
        return True
    if joined(layers) is not None:
        return True
    if not all(is_plain(layer) for layer in layers) or len({layer.bias is None for layer in layers}) > 1:
        return False
    groups = [[layer.weight for layer in layers]]
    if layers[0].bias is not None:
        groups.append([layer.bias for layer in layers])
    for group in groups:
        kinds = {(p.dtype, p.device, p.shape[1:], p.is_inference()) for p in group}
        if len(kinds) > 1 or any(p.is_meta for p in group):
            return False
    for group in groups:
        # a parameter made in inference mode accepts only data that was made in it
        with torch.no_grad(), torch.inference_mode(group[0].is_inference()):
            whole = torch.cat([p.data for p in group])
            for p, part in zip(group, whole.split([p.shape[0] for p in group]), strict=True):
                p.data = part
    return True


def joined(layers: Sequence[Any]) -> tuple[Tensor, Tensor | None] | None:
    """Returns plain layers' weights and biases as those of one layer, None where they are not adjacent in memory."""
    if not all(is_plain(layer) for layer in layers):
        return None
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    missing = [b is None for b in biases]
    if any(missing) != all(missing):
        return None
    if torch.compiler.is_compiling():
        # addresses can't be compared while tracing; in inference joined_product leaves that to its op
        return torch.cat(weights), None if missing[0] else torch.cat(biases)
    if not are_adjacent(weights) or not (missing[0] or are_adjacent(biases)):
        return None
    return _Joined.apply(*weights), None if missing[0] else _Joined.apply(*biases)


def joined_product(layers: Sequence[Any], x: Tensor) -> Tensor | None:
    """Returns plain layers' results of x side by side where torch.compile traces inference; None elsewhere."""
    if not torch.compiler.is_compiling() or backends.autocast_dtype(x.device.type) is not None:
        return None
    if not all(is_plain(layer) for layer in layers) or len({layer.bias is None for layer in layers}) > 1:
        return None
    weights = [layer.weight for layer in layers]
    biases = [] if layers[0].bias is None else [layer.bias for layer in layers]
    return None if records(x, *weights, *biases) else joined_linear(x, weights, biases)


def joined8(layers: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Returns 8-bit layers' weights, scales and biases as those of one layer, None where they are not adjacent.

    None also where oneDNN multiplies, which packs each weight by itself.
    """
    precision = precision_of(layers)
    if precision is None or (precision == "int8" and by_onednn(layers[0].weight_scale)):
        return None
    weights, scales, biases = (
        [getattr(layer, name) for layer in layers] for name in ("weight", "weight_scale", "bias")
    )
    missing = [b is None for b in biases]
    if any(missing) != all(missing):
        return None
    if torch.compiler.is_compiling():
        weight = torch.cat([w.view(torch.uint8) for w in weights]).view(weights[0].dtype)
        return weight, torch.cat(scales), None if missing[0] else torch.cat(biases)
    groups = [weights, scales] if missing[0] else [weights, scales, biases]
    if not all(are_adjacent(group) for group in groups):
        return None
    whole = [_Joined.apply(*group) for group in groups]
    return whole[0], whole[1], None if missing[0] else whole[2]


def join8(layers: Sequence[Any]) -> None:
    """Moves 8-bit layers' weights and scales into one storage each, for `joined8`; biases too, which stay the same."""
    if joined8(layers) is not None:
        return
    for name in ("weight", "weight_scale"):
        parts = [getattr(layer, name) for layer in layers]
        as_bytes = [p.view(torch.uint8) if p.element_size() == 1 else p for p in parts]
        whole = torch.cat(as_bytes).view(parts[0].dtype)
        for layer, part in zip(layers, whole.split([p.shape[0] for p in parts]), strict=True):
            setattr(layer, name, part)
    biases = [layer.bias for layer in layers]
    if all(b is not None for b in biases) and len({(b.dtype, b.device) for b in biases}) == 1:
        with torch.no_grad(), torch.inference_mode(biases[0].is_inference()):
            whole = torch.cat([b.data for b in biases])
            for b, part in zip(biases, whole.split([b.shape[0] for b in biases]), strict=True):
                b.data = part


class _Joined(torch.autograd.Function):
    """Views adjacent tensors as one; splits its gradient among them."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.rows = [p.shape[0] for p in parts]
        # saved so that a write to any part before the backward raises, as it would for a single weight
        ctx.save_for_backward(*parts)
        return parts[0].as_strided((sum(ctx.rows), *parts[0].shape[1:]), parts[0].stride())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        ctx.saved_tensors  # noqa: B018
        return grad.split(ctx.rows)
