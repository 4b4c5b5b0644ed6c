"""The compiled extension, typed: `load()` returns latte_fast._C or raises ExtensionNotBuilt with the reason and the command."""

import functools
import json
from pathlib import Path
from types import ModuleType

import torch  # first, so that the loader resolves libgomp.so.1 to the copy torch ships  # noqa: F401


class ExtensionNotBuilt(RuntimeError):
    """latte_fast._C is not there; everything that has another backend still works."""


@functools.cache
def build_info() -> dict:
    path = Path(__file__).parent.with_name("_build_info.json")
    return json.loads(path.read_text()) if path.exists() else {}


@functools.cache
def why_not_built() -> str | None:
    try:
        load()
    except ExtensionNotBuilt as error:
        return str(error)
    return None


@functools.cache
def load() -> ModuleType:
    try:
        from latte_fast import _C
    except ImportError as error:
        reason = build_info().get("error") or str(error)
        raise ExtensionNotBuilt(f"latte_fast._C is not built ({reason}); run `pip install -e .` with a C++ compiler") from error
    return _C
