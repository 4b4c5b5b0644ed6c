"""Linear layers whose bias is left to the kernel that reads the result."""

import torch.nn.functional as F
from torch import Tensor, nn


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is an nn.Linear whose weight may be read in its place: not LoRA, quantised or hooked."""
    return type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks


def split_bias(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(x w^T, b) for a plain layer; (layer(x), None) for anything put in its place."""
    return (F.linear(x, layer.weight), layer.bias) if is_plain(layer) else (layer(x), None)  # type: ignore[return-value]
