"""Counts memory: the most that a run has live at once, and what a forward keeps for its backward."""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latte_fast._ext.linear import release_buffers


class _Live(TorchDispatchMode):
    """Counts the bytes of storages made inside, as they are allocated and freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def _gone(self, key: int, size: int) -> None:
        self.live -= size
        self.seen.discard(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **kwargs or {})
        for x in tree_leaves(out):
            if not isinstance(x, Tensor):
                continue
            storage = x.untyped_storage()
            key = storage._cdata
            if key in before or key in self.seen:
                continue
            self.seen.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out


def peak_bytes(run: Callable[[], object]) -> int:
    """Returns the most bytes allocated by `run` that were live at once, reused buffers included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    release_buffers()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    results = seen.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(size for _, size in sorted(changes)), default=0)


def kept_bytes(model: nn.Module, *args: Any) -> int:
    """Returns the bytes that are still live after a forward, for its backward; its result is not counted."""
    with _Live() as seen:
        out = model(*args)
        kept = seen.live
    return kept - out.untyped_storage().nbytes()
