"""What torch.compile is told of a function."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def constant_in_graphs(function: F) -> F:
    """Lets torch.compile call a function while it traces, and keep what it returned.

    torch.compiler.assume_constant_result does the same, and imports torch._dynamo for it: 1.5 s of a command's start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
