"""Checks of constructor keywords that every family shares."""

from collections.abc import Sequence

EXTEND = ("error", "sincos", "interpolate")


def check_keyword(name: str, value: str, allowed: Sequence[str], model: str = "Latte") -> None:
    if value not in allowed:
        raise ValueError(f"{model}: {name} must be one of {', '.join(allowed)}, got {value!r}")
