"""Pairs of an oracle and a fast model with the same refilled weights, their inputs and their gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from latte_fast import Latte, LatteIMG, reference, testing

SMALL = {"input_size": 8, "num_frames": 3, "depth": 2, "hidden_size": 64, "num_heads": 2, "num_classes": 5}


def build_pair(joint: bool = False, dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Returns (oracle, fast) in `dtype`, with the same refilled weights."""
    keywords = SMALL | kwargs
    oracle = (reference.latte.LatteIMG if joint else reference.latte.Latte)(**keywords)
    testing.refill(oracle)
    fast = (LatteIMG if joint else Latte)(**keywords)
    fast.load_state_dict(oracle.state_dict())
    return oracle.to(dtype), fast.to(dtype)


def build_inputs(model: nn.Module, batch: int = 2, images: int = 0, seed: int = 0) -> tuple[tuple, dict[str, Any]]:
    """Returns (x, t), t differing between samples, and the condition that the model takes, y differing too."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    dtype = model.x_embedder.proj.weight.dtype
    frames = config.num_frames + images
    shape = (batch, frames, config.in_channels, config.input_size, config.input_size)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    kwargs: dict[str, Any] = {}
    if config.extras == 2:
        kwargs["y"] = torch.arange(batch) % config.num_classes
    if config.extras == 78:
        text = torch.randn(batch, model.text_width, generator=generator, dtype=torch.float64)
        kwargs["text_embedding"] = text.to(dtype)
    if images:
        kwargs["use_image_num"] = images
        if config.extras == 2:
            kwargs["y_image"] = list(torch.randint(0, config.num_classes, (batch, images), generator=generator))
    return (x, t), kwargs


def forward_backward(model: nn.Module, args: tuple, kwargs: dict, dout: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns (output, gradients by parameter name) under the upstream gradient dout; label dropout is seeded."""
    model.zero_grad()
    torch.manual_seed(7)
    out = model(*args, **kwargs)
    out.backward(dout.to(out.dtype))
    return out.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def assert_gradients(got: dict, oracle: dict, bound: float) -> None:
    """Asserts that every gradient is within `bound` of its largest value, or noise if zero in exact arithmetic."""
    assert got.keys() == oracle.keys()
    largest = max(g.abs().max().item() for g in oracle.values())
    for name, exact in oracle.items():
        floor = 8 * torch.finfo(got[name].dtype).eps * largest
        if exact.abs().max().item() <= floor:
            assert got[name].abs().max().item() <= floor, name
        else:
            assert testing.relative_error(got[name], exact) <= bound, (name, testing.relative_error(got[name], exact))
