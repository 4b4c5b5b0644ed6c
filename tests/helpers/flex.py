"""Pairs of an oracle and a FlexLatte with the same refilled weights."""

from typing import Any

import torch
from torch import nn

from latte_fast import reference, testing
from latte_fast.models.flexdit.model import FlexLatte, FlexLatteIMG

# a grid of 4 x 4 tokens, two modules
FLEX = {"input_size": 8, "num_frames": 3, "depth": 12, "hidden_size": 32, "num_heads": 2, "num_classes": 5,
        "layout": "PP GSSSRD GSRD", "sides": (2, 3)}  # fmt: skip


def flex_pair(joint: bool = False, dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Returns (oracle, fast) in `dtype`; no weight is left at zero or at the identity."""
    keywords = FLEX | kwargs
    oracle = (reference.flex_latte.FlexLatteIMG if joint else reference.flex_latte.FlexLatte)(**keywords)
    testing.refill(oracle)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in oracle.named_parameters():
            if name.endswith("merged_layer2.weight"):
                p += torch.randn(p.shape, generator=generator) * p.shape[1] ** -0.5
    fast = (FlexLatteIMG if joint else FlexLatte)(**keywords)
    fast.load_state_dict(oracle.state_dict())
    return oracle.to(dtype), fast.to(dtype)
