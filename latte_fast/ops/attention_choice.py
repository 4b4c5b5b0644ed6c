"""Which backend attends where several can: ours, unless this GPU's table says that a library was measured faster."""

import functools

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.ops.registration import records
from latte_fast.reference.functional import Rope

_OP = "axis_attention"
# those a table may name; `latte-fast tune` times each that serves
CONTENDERS = ("triton", "cudnn", "sdpa", "flash_attn")


def choose(q: Tensor, k: Tensor, v: Tensor, axis: str, rope: Rope | None, scale: float, key_mask: Tensor | None) -> str:
    """The backend that serves a call: as `backends.choose`, but for the shapes that this GPU's table gives away."""
    args = (q, k, v, axis, rope, scale, key_mask)
    backend = backends.choose(_OP, *args)
    # sizes may be symbols while compiling, and no library's backward sums in a fixed order
    if backend != "triton" or backends.forced(_OP) or torch.compiler.is_compiling():
        return backend
    table = _table(q.device)
    if not table or torch.are_deterministic_algorithms_enabled():
        return backend
    faster = table.get(shape_key(q, k, axis, records(q, k, v)), backend)
    # a library that is gone since it was measured
    return faster if backends.why_not(_OP, faster, *args) is None else backend


def shape_key(q: Tensor, k: Tensor, axis: str, grad: bool) -> str:
    """A call's name in kernels/configs/<gpu>.json: `space-1024x1024-K72-bfloat16-grad`."""
    queries, keys = (q.shape[2], k.shape[2]) if axis == "space" else (q.shape[1], k.shape[1])
    dtype = str(q.dtype).removeprefix("torch.")
    return f"{axis}-{queries}x{keys}-K{q.shape[-1]}-{dtype}{'-grad' if grad else ''}"


@functools.cache
def _table(device: torch.device) -> dict[str, str]:
    """Shape -> the fastest backend on this GPU; empty where attention was never measured."""
    from latte_fast.kernels import tiles

    prefix = f"{_OP}/"
    stored = tiles.measured(tiles.gpu_of(device).name)
    return {key.removeprefix(prefix): str(c["backend"]) for key, c in stored.items() if key.startswith(prefix)}
