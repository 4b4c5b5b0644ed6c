"""Guards of a test: that it does not compare the oracle with itself, and that an output left unwritten shows."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._device import _device_constructors

from latte_fast import backends


def require_backend(op: str, *args: Any, **kwargs: Any) -> str:
    """Returns the backend that serves these arguments; skips the test, with reasons, if that is the oracle itself."""
    name = backends.choose(op, *args, **kwargs)
    if name == "reference":
        reasons = {b: backends.why_not(op, b, *args, **kwargs) for b in backends.candidates(op) if b != "reference"}
        pytest.skip(f"{op} resolved to the reference: {reasons}")
    return name


@contextlib.contextmanager
def poisoned_empty() -> Iterator[None]:
    """Fills what latte_fast allocates with torch.empty* with NaN, so that an output left unwritten shows."""
    names = ("empty", "empty_like", "empty_strided")
    originals = {name: getattr(torch, name) for name in names}

    def poisoning(original: Callable) -> Callable:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            out = original(*args, **kwargs)
            caller = sys._getframe(1).f_code.co_filename
            ours = f"{os.sep}latte_fast{os.sep}" in caller or f"{os.sep}kernels{os.sep}" in caller
            return out.fill_(math.nan) if ours and out.is_floating_point() else out

        return allocate

    # a device context lists torch's functions once a process: not while ours stand in their places
    _device_constructors()
    poisoned = {name: poisoning(original) for name, original in originals.items()}
    for name in names:
        setattr(torch, name, poisoned[name])
    try:
        yield
        # who gives it back later than this gives back the poison, to every test that follows
        replaced = [name for name in names if getattr(torch, name) is not poisoned[name]]
        assert not replaced, f"torch.{replaced[0]} was replaced while poisoned, and not given back"
    finally:
        for name in names:
            setattr(torch, name, originals[name])
