"""Replays calls with few clips by themselves: there a GPU waits for the host to launch its kernels.

On an H100 a forward of Latte-XL/2 took the host 25 ms and the GPU 7 for a clip. Calls of a model that is in eval mode,
without gradients, and small enough are replayed as CUDA graphs from the second call at the same shapes on.
`model.replays_few_clips = False` turns it off for a model, LATTE_FAST_REPLAY=0 in the environment for all.
"""

import functools
import logging
import os
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from latte_fast import backends
from latte_fast.cuda_graphs.replay import Replay, is_inside_graph, on_gpu

# operations of a block's linear layers, below which its launches take longer than its kernels: four clips of XL/2
FEW = 5.2e11
GRAPHS = 4
Method = TypeVar("Method", bound=Callable)


class FewClips:
    """What a model's calls are replayed by; a copy of the model begins without."""

    def __init__(self) -> None:
        self.replay: Replay | None = None
        self.seen: set[tuple] = set()  # shapes that were called once
        self.broken = ""

    def __reduce__(self) -> tuple:
        return FewClips, ()


def replayed_if_few(forward: Method) -> Method:
    """Makes a model's method, x first and a tensor returned, one whose calls with few clips are replayed."""

    @functools.wraps(forward)
    def call(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling() or not wanted(self, x):
            return forward(self, x, *args, **kwargs)
        return replayed(self, forward, (x, *args), kwargs)

    return call  # type: ignore[return-value]


def wanted(model: Any, x: Any) -> bool:
    """Whether a call may be replayed, by what costs nothing to ask."""
    if torch.is_grad_enabled() or model.training or not isinstance(x, Tensor) or not on_gpu(x):
        return False
    if not model.replays_few_clips or is_inside_graph():
        return False
    # a run's table or plan moves from step to step as the host says, and ranks exchange tokens
    if model.stack_reuse is not None or model.modulation_table is not None or model.parallel is not None:
        return False
    return operations(model.config, x) <= FEW and os.environ.get("LATTE_FAST_REPLAY", "1") != "0"


def operations(config: Any, x: Tensor) -> float:
    """Of the four linear layers of one of the model's blocks."""
    width = getattr(config, "hidden_size", 0) or config.num_attention_heads * config.attention_head_dim
    return 24.0 * width**2 * x.numel() / (config.in_channels * config.patch_size**2)


def replayed(model: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    few: FewClips = model.__dict__.setdefault("_few_clips", FewClips())
    given = (*args, *kwargs.values())
    shapes = (len(args), *kwargs, *((v.shape, v.dtype) if isinstance(v, Tensor) else str(v) for v in given))
    if few.broken or shapes not in few.seen:
        few.seen.add(shapes)
        return forward(model, *args, **kwargs)
    if few.replay is None:
        backends.say_once(
            "calls with few clips are replayed as CUDA graphs; model.replays_few_clips = False turns it off",
            logging.INFO,
        )
        few.replay = Replay(MethodType(forward, model), most=GRAPHS)
    try:
        return few.replay(*args, **kwargs)
    except torch.OutOfMemoryError:
        few.replay.forget()
        few.broken = "no memory is left for a graph"
    except RuntimeError as error:
        few.broken = (str(error).strip() or repr(error)).splitlines()[0]
    backends.say_once(f"calls with few clips run launch by launch: {few.broken}", logging.WARNING)
    return forward(model, *args, **kwargs)
