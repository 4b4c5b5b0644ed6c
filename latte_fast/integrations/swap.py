"""Swaps a module in place: its new class inherits from ours and then its own, and its state stays."""

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, NamedTuple

from torch import nn

from latte_fast.modules.hooks import REGISTRY, is_replaced

# the attribute that keeps a swapped instance's own class
MARK = "_latte_fast_class_before"


class Kind(NamedTuple):
    """A family of models that patch knows."""

    looks_like: Callable[[nn.Module], bool]
    fast: type[nn.Module]
    why_not: Callable[[Any], str | None]
    prepare: Callable[[Any], None]
    swaps: Callable[[nn.Module], Iterator[tuple[str, nn.Module, type[nn.Module]]]]
    finish: Callable[[Any], None]
    unfused: Callable[[Any], dict[str, str]]


def swap(module: nn.Module, cls: type[nn.Module]) -> None:
    module.__dict__[MARK] = type(module)
    become(module, cls)


def become(module: nn.Module, cls: type[nn.Module]) -> None:
    """Gives an instance a class that inherits from `cls` and then its own, for good."""
    module.__class__ = both(cls, type(module))
    rebind(module)


def both(cls: type[nn.Module], before: type[nn.Module]) -> type[nn.Module]:
    """Returns the class of a swapped instance, which inherits from ours and then its own."""

    def reduce(self: nn.Module, protocol: Any) -> tuple:
        return _remade, (cls, before), self.__dict__.copy()

    # with the old name, which save_pretrained writes into the config
    names = {"__module__": before.__module__, "__qualname__": before.__qualname__, "__reduce_ex__": reduce}
    return type(before.__name__, (cls, before), {**names, "patched": True})


def _remade(cls: type[nn.Module], before: type[nn.Module]) -> nn.Module:
    """Recreates a swapped instance for pickle and copy, before its state is set."""
    module = before.__new__(before)
    module.__class__ = both(cls, before)
    return module


def forget_own_forward(module: nn.Module) -> None:
    """Drops an instance's bound copy of its class's forward, which removed hooks leave behind."""
    if not is_replaced(module):
        module.__dict__.pop("forward", None)


def rebind(module: nn.Module) -> None:
    """Replaces the original forward that hooks saved by that of the module's current class."""
    forget_own_forward(module)
    own = MethodType(type(module).forward, module)
    if "_old_forward" in module.__dict__:  # accelerate's
        module.__dict__["_old_forward"] = own
    for innermost in getattr(module.__dict__.get(REGISTRY), "_fn_refs", [])[:1]:  # diffusers'
        kept = "forward" if innermost.original_forward is None else "original_forward"
        setattr(innermost, kept, own)


def restore(module: nn.Module) -> None:
    """Gives a swapped instance its own class back."""
    before = module.__dict__.pop(MARK, None)
    if before is not None:
        leave: Any = getattr(type(module), "leave", None)
        if leave is not None:
            leave(module)
        forget_own_forward(module)
        module.__class__ = before
        for ours in ("_prompt_cache", "stack_reuse"):
            module.__dict__.pop(ours, None)
        rebind(module)
