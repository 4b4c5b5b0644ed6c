"""Finds what would make the host wait for a GPU, without one: the meta device stands in for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("meta")


class _Copies(TorchDispatchMode):
    """Refuses copies of tensors from the host to the device; the meta device itself refuses copies back."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ({x.device for x in tree_leaves(tree) if isinstance(x, Tensor)} for tree in ((args, kwargs), out))
        if GPU in made and torch.device("cpu") in given:
            raise AssertionError(f"{func} would copy from the host")
        return out


class _Values(TorchFunctionMode):
    """Refuses copies of Python's numbers, which a dispatch mode does not see."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == GPU:
            raise AssertionError(f"{func} would copy a number from the host")
        return func(*args, **kwargs)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises where the host would wait for a GPU: all work inside has to stay on the device."""
    with _Copies(), _Values():
        yield
