"""Loads the compiled extension: `load()` returns latte_fast._C or raises ExtensionNotBuilt with reason and command.

Beside this file every op has a launcher, which turns tensors into pointers, sizes and strides.
"""

import json
from pathlib import Path
from types import ModuleType

import torch  # noqa: F401  first, so that the loader resolves libgomp.so.1 to the copy torch ships


class ExtensionNotBuilt(RuntimeError):
    """latte_fast._C is missing; ops that have another backend still work."""


def build_info() -> dict:
    """The record that setup.py wrote of the build: levels, refused flags, CUDA, and why anything is missing."""
    path = Path(__file__).parent.with_name("_build_info.json")
    return json.loads(path.read_text()) if path.exists() else {}


_module: ModuleType | None = None
_reason: str | None = None
try:
    from latte_fast import _C as _module  # type: ignore[no-redef]
except ImportError as error:
    _reason = (
        f"latte_fast._C is not built ({build_info().get('error') or error}); "
        "run `pip install -e .` with a C++ compiler to build it"
    )


_has_cuda = hasattr(_module, "cuda_runtime")
_cuda_reason = "" if _has_cuda else build_info().get("cuda_reason", "")


def why_not_built() -> str | None:
    return _reason


def why_no_cuda() -> str | None:
    """Why there are no CUDA kernels, or None where there are."""
    if _reason or _has_cuda:
        return _reason
    return f"the extension was built without CUDA ({_cuda_reason})"


def load() -> ModuleType:
    if _module is None:
        raise ExtensionNotBuilt(_reason)
    return _module
