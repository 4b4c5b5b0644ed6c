"""Linear layers whose bias is left to the kernel that reads the result, and layers that share one storage."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast import ops
from latte_fast.modules.hooks import is_untouched


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


def split_bias(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns (x w^T, b) of a plain layer; (layer(x), None) of a replaced one, and where the GEMM adds b at no cost."""
    if not is_plain(layer) or adds_its_bias(layer, x):
        return layer(x), None
    return F.linear(x, layer.weight), layer.bias


def mlp(fc1: Any, fc2: Any, h: Tensor, act: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
    """Applies fc1, tanh-GELU and fc2; returns the result and the bias of fc2 that is still to be added, if any.

    Another activation, or one with hooks, is called in GELU's place.
    """
    if act is not None and not (type(act) is nn.GELU and act.approximate == "tanh" and is_untouched(act)):
        return split_bias(fc2, act(fc1(h)))
    if is_plain(fc1) and is_plain(fc2) and not adds_its_bias(fc2, h):
        return ops.mlp_layer(h, fc1.weight, fc1.bias, fc2.weight), fc2.bias
    a = ops.linear_gelu(h, fc1.weight, fc1.bias) if is_plain(fc1) else ops.bias_gelu(fc1(h))
    return split_bias(fc2, a)


def share_storage(layers: Sequence[Any]) -> bool:
    """Moves plain layers' weights into one storage, one after the other, biases too; returns False where it can't.

    The parameters stay the same objects under the same names: `joined` then reads them as one, without a copy.
    """
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
        # addresses can't be compared while tracing
        return torch.cat(weights), None if missing[0] else torch.cat(biases)
    if not _adjacent(weights) or not (missing[0] or _adjacent(biases)):
        return None
    return _Joined.apply(*weights), None if missing[0] else _Joined.apply(*biases)


def _adjacent(parts: Sequence[Tensor]) -> bool:
    first = parts[0]
    storage = first.untyped_storage().data_ptr()
    at = first.data_ptr()
    for p in parts:
        same = p.dtype == first.dtype and p.shape[1:] == first.shape[1:] and p.is_contiguous()
        if not same or p.data_ptr() != at or p.untyped_storage().data_ptr() != storage:
            return False
        at += p.numel() * p.element_size()
    return at > first.data_ptr()


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
