"""Which implementation serves an op, and why another can't: `why_not(op, backend, *args)` is None or a sentence."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

Probe = Callable[..., str | None]
NAMES = ("reference", "triton", "cuda", "cpu", "cudnn", "sdpa", "flash_attn", "xformers", "auto")

log = logging.getLogger("latte_fast")
_probes: dict[str, dict[str, Probe]] = {}  # op -> backend -> probe, in order of preference
_forced: dict[str, str] = {}
_said: set[str] = set()


class BackendUnavailable(RuntimeError):
    """Raised when a backend was asked for by name and cannot serve the call."""


def register(op: str, probes: dict[str, Probe]) -> None:
    """Declares an op's backends in order of preference; the reference, which serves everything, comes last."""
    _probes[op] = {**probes, "reference": lambda *args, **kwargs: None}


def ops() -> tuple[str, ...]:
    return tuple(_probes)


def candidates(op: str) -> tuple[str, ...]:
    return tuple(_probes[op])


def why_not(op: str, backend: str, *args: Any, **kwargs: Any) -> str | None:
    """Returns why `backend` can't serve `op` on these arguments, or None where it can."""
    if op not in _probes:
        raise ValueError(f"why_not: op must be one of {', '.join(_probes)}, got {op!r}")
    if backend not in _probes[op]:
        return f"{op} has no backend {backend}"
    return _probes[op][backend](*args, **kwargs)


def is_forced(op: str) -> bool:
    """Returns whether a backend of op was asked for by name."""
    return _forced.get(op, "auto") != "auto"


def state() -> dict[str, str]:
    """Returns the backend that was asked for by name, for each op."""
    return dict(_forced)


def choose(op: str, *args: Any, **kwargs: Any) -> str:
    """Returns the backend that serves this call: the forced one, else the first that can."""
    forced = _forced.get(op, "auto")
    tangents = forward_ad._current_level >= 0
    transformed = _is_transformed()
    if (tangents or transformed) and forced == "auto":
        return "reference"  # a kernel would silently drop the tangents, and has no rule for vmap or torch.func.grad
    if forced != "auto":
        reason = _probes[op][forced](*args, **kwargs)
        if tangents and forced != "reference":
            reason = "it has no forward-mode derivative"
        if transformed and forced != "reference":
            reason = "it has no rule for transforms of torch.func; the reference serves them"
        if reason:
            raise BackendUnavailable(f"{op}: backend {forced} cannot serve this call: {reason}")
        return forced
    for backend, probe in _probes[op].items():
        reason = probe(*args, **kwargs)
        if reason is None:
            return backend
        if not torch.compiler.is_compiling():
            say_once(f"{op}: not on {backend}: {reason}")
    raise AssertionError("the reference serves everything")


def _is_transformed() -> bool:
    """Whether vmap or another transform of torch.func is at work; compiled code takes kernels by its own rules."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Returns the dtype that autocast asks for on a device, or None where it is off."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def say_once(sentence: str, level: int = logging.DEBUG) -> None:
    if sentence not in _said:
        _said.add(sentence)
        log.log(level, sentence)


class use_backend:
    """Forces backends inside a `with`: `use_backend("cpu")` for every op that has it, or one op by name.

    `use_backend(axis_attention="sdpa")` forces one op. The choice holds for the whole process, not for a thread; a
    backward uses its forward's backend wherever it runs.
    """

    def __init__(self, name: str | None = None, /, **by_op: str):
        for op, backend in [(None, name)] * (name is not None) + list(by_op.items()):
            if backend not in NAMES:
                raise ValueError(f"use_backend: backend must be one of {', '.join(NAMES)}, got {backend!r}")
            if op is not None and op not in _probes:
                raise ValueError(f"use_backend: op must be one of {', '.join(_probes)}, got {op!r}")
            if op is not None and backend != "auto" and backend not in _probes[op]:
                raise ValueError(f"use_backend: {op} has the backends {', '.join(_probes[op])}, got {backend!r}")
        self.choice: dict[str, str] = {}
        if name is not None:
            self.choice = {op: name for op in _probes if name == "auto" or name in _probes[op]}
            others = [op for op in _probes if op not in self.choice]
            if others:
                sentence = f"use_backend: {name} leaves on auto what has no such backend: {', '.join(others)}"
                say_once(sentence, logging.WARNING)
        self.choice |= by_op
        self.before: list[dict[str, str]] = []  # one for each `with` of this instance that is open

    def __enter__(self) -> "use_backend":
        self.before.append(dict(_forced))
        _forced.update(self.choice)
        return self

    def __exit__(self, *exc: object) -> None:
        _forced.clear()
        _forced.update(self.before.pop())
