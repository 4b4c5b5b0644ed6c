"""Pairs of an oracle and a fast text-to-video model with the same weights, their inputs and their gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from latte_fast import LatteT2V, reference

SMALL: dict[str, Any] = {"num_attention_heads": 3, "attention_head_dim": 24, "num_layers": 2, "sample_size": 8}
SMALL |= {"cross_attention_dim": 72, "caption_channels": 40, "video_length": 3}


def pair(dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[nn.Module, LatteT2V]:
    torch.manual_seed(0)
    oracle = reference.latte_t2v.LatteT2V(**SMALL | kwargs)
    fast = LatteT2V(**SMALL | kwargs)
    fast.load_state_dict(oracle.state_dict())
    return oracle.to(dtype), fast.to(dtype)


def inputs(frames: int, height: int, width: int, images: int = 0, dtype: torch.dtype = torch.float32) -> tuple:
    """Returns x, t, text and a mask that drops some tokens of each caption."""
    generator = torch.Generator().manual_seed(frames + height + images)
    x = torch.randn(2, 4, frames + images, height, width, generator=generator)
    captions = (1 + images,) if images else ()
    text = torch.randn(2, *captions, 7, 40, generator=generator)
    mask = torch.rand(2, *captions, 7, generator=generator) > 0.4
    mask[..., 0] = True
    return x.to(dtype), torch.tensor([3, 900]), text.to(dtype), mask


def gradients(model: nn.Module, out: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients(oracle: dict[str, Tensor], fast: dict[str, Tensor], limit: float) -> None:
    """Asserts errors below `limit` times a gradient's size, or noise if it is zero in exact arithmetic (to_k.bias)."""
    assert oracle.keys() == fast.keys()
    largest = max(g.abs().max().item() for g in oracle.values())
    for name, exact in oracle.items():
        vanishing = 8 * torch.finfo(exact.dtype).eps * largest
        error, size = (exact - fast[name]).abs().max().item(), exact.abs().max().item()
        assert error <= vanishing if size < vanishing else error <= limit * size, f"{name}: {error} of {size}"


CASES = [(3, 8, 8, True), (1, 8, 8, True), (3, 8, 12, True), (3, 6, 10, False)]
