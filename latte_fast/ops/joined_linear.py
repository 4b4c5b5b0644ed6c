"""joined_linear: x w^T + b of several layers at once, whose weights are one matrix where they lie side by side.

It is an op because torch.compile can't compare addresses while it traces: in its graph the weights would be copied
together on every call. It has no derivative.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from latte_fast.ops.linear_layer import linear_layer
from latte_fast.ops.registration import LIBRARY


def joined_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """x (..., D), weights (M_i, D), biases (M_i,) or none -> (..., sum of M_i)."""
    return _OP(x, list(weights), list(biases))


def are_adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether tensors lie one after the other in one storage, as rows of one tensor."""
    first = parts[0]
    storage = first.untyped_storage().data_ptr()
    at = first.data_ptr()
    for p in parts:
        same = p.dtype == first.dtype and p.shape[1:] == first.shape[1:] and p.is_contiguous()
        if not same or p.data_ptr() != at or p.untyped_storage().data_ptr() != storage:
            return False
        at += p.numel() * p.element_size()
    return at > first.data_ptr()


def _linear(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return linear_layer(x, _as_one(weights), _as_one(biases) if biases else None)


def _as_one(parts: list[Tensor]) -> Tensor:
    if not are_adjacent(parts):
        return torch.cat(parts)
    return parts[0].as_strided((sum(p.shape[0] for p in parts), *parts[0].shape[1:]), parts[0].stride())


LIBRARY.define("joined_linear(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor")
LIBRARY.impl("joined_linear", _linear, "CompositeExplicitAutograd")
torch.library.register_fake(
    "latte_fast::joined_linear",
    lambda x, weights, biases: x.new_empty(*x.shape[:-1], sum(w.shape[0] for w in weights)),
    lib=LIBRARY,
)
_OP = torch.ops.latte_fast.joined_linear.default


@register_flop_formula(torch.ops.latte_fast.joined_linear)
def _flops(x: Sequence[int], weights: Sequence[Sequence[int]], *_: object, out_shape: object = None) -> int:
    return 2 * math.prod(x) * sum(w[0] for w in weights)
