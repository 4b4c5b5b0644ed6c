"""Caches what depends on the prompt alone: computed once, reused in every step, dropped when anything has changed."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn

from latte_fast.backends import autocast_dtype
from latte_fast.modules.linear import is_plain

T = TypeVar("T")


class _Entry(NamedTuple):
    source: Tensor  # held, so that its identity can't pass to another tensor
    version: int
    parameters: list[Tensor]
    values: list[Tensor]  # views, which keep the storages: their addresses can't pass to other weights
    versions: list[int]
    autocast: torch.dtype | None
    result: Any


class PromptCache(Generic[T]):
    """Caches a function of one tensor and some linear layers, for the last `KEPT` tensors.

    A result is stored only while no gradient is recorded, nothing is traced or captured and every layer is a plain
    nn.Linear. It is reused only for the same tensor object with the same weights, all of them unwritten since, under
    the same autocast. A write through `.data` goes unnoticed: call `forget` after it.
    """

    KEPT = 2

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def __call__(self, source: Tensor, layers: Sequence[nn.Module], compute: Callable[[Tensor], T]) -> T:
        # torch.compile, for which _is_recorded answers, can't trace is_inference
        unfit = torch.is_grad_enabled() or _is_recorded(source) or source.is_inference()
        if unfit or type(source) is not Tensor or not all(is_plain(layer) for layer in layers):
            self.forget()
            return compute(source)
        parameters = [p for layer in layers for p in (layer.weight, layer.bias) if isinstance(p, Tensor)]
        if any(p.is_inference() for p in parameters):
            return compute(source)
        autocast = autocast_dtype(source.device.type)
        fresh = [e for e in self._entries if _unchanged(e, parameters)]
        for entry in fresh:
            if entry.source is source and entry.autocast == autocast:
                self._entries = fresh
                return entry.result
        versions = [p._version for p in parameters]
        result = compute(source)
        values = [p.detach() for p in parameters]
        self._entries = [
            *fresh[-self.KEPT + 1 :],
            _Entry(source, source._version, parameters, values, versions, autocast, result),
        ]
        return result

    def forget(self) -> None:
        self._entries = []

    def __deepcopy__(self, memo: dict) -> "PromptCache":
        return PromptCache()

    def __reduce__(self) -> tuple:
        return PromptCache, ()


def is_gathered(model: nn.Module) -> bool:
    """Returns whether FSDP gathers the weights for each call: writes to their shards would go unnoticed."""
    if torch.compiler.is_compiling() or not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def _is_recorded(source: Tensor) -> bool:
    """Returns whether the call is traced, compiled or captured, to run again with other values in the same tensors."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return source.is_cuda and torch.cuda.is_current_stream_capturing()


def _unchanged(entry: _Entry, parameters: list[Tensor]) -> bool:
    return (
        entry.source._version == entry.version
        and len(parameters) == len(entry.parameters)
        and all(
            p is q and p.data_ptr() == value.data_ptr() and p._version == version
            for p, q, value, version in zip(parameters, entry.parameters, entry.values, entry.versions, strict=True)
        )
    )
