"""Linear layers whose bias is left to the kernel that reads the result."""

import torch.nn.functional as F
from torch import Tensor, nn


def split_bias(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(x w^T, b) for a plain nn.Linear; (layer(x), None) for anything put in its place (LoRA, quantised, hooked)."""
    if type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks:
        return F.linear(x, layer.weight), layer.bias
    return layer(x), None
