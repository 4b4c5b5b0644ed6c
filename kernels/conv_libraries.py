"""Limits of cuDNN's transposed convolution, which torch calls."""

import torch
from torch import Tensor

from latte_fast.tracing import constant_in_graphs


def why_not_cudnn(x: Tensor, w: Tensor, *window: tuple[int, ...]) -> str | None:
    if x.device.type != "cuda":
        return f"cuDNN needs a CUDA tensor, got one on {x.device.type}"
    if not torch.backends.cudnn.enabled:
        return "torch.backends.cudnn.enabled is False"
    if x.dtype == torch.float32 and rounds_to_tf32():
        return "cuDNN would round fp32 to TF32; set torch.backends.cudnn.allow_tf32 = False"
    return None


@constant_in_graphs
def rounds_to_tf32() -> bool:
    """Whether cuDNN may round fp32 to TF32; allow_tf32 raises once the separate switches of torch 2.9 disagree."""
    convolution = getattr(torch.backends.cudnn, "conv", None)
    return torch.backends.cudnn.allow_tf32 if convolution is None else convolution.fp32_precision == "tf32"
