"""Attention by torch's SDPA, cuDNN, flash-attn 2, 3, 4 and xformers: optional backends, their limits in why_not.

They bring their own autograd, so no op of ours wraps them. All get (batch, length, H, K) views; a call that would need
a copy is refused.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from latte_fast.tracing import constant_in_graphs

Rope = tuple[Tensor, Tensor]
HALVES = (torch.bfloat16, torch.float16)
Library = tuple[tuple[str, ...], str]
# where each flash-attn generation keeps the same function, newest first
FLASH_ATTN = (("flash_attn.cute", "flash_attn_interface", "flash_attn"), "flash_attn_func")
XFORMERS = (("xformers.ops",), "memory_efficient_attention")
# CUDA's limit on the second and third dimension of a grid; these libraries put the batch there
MAX_BATCH = 65535
MAX_WIDTH = 256


def to_batch(x: Tensor, axis: str) -> Tensor:
    """(B, F, N, H, K) as (batch, length, H, K), batch B*F in space, B*N in time; raises where it would copy."""
    if axis == "time":
        x = x.transpose(1, 2)
    return x.view(x.shape[0] * x.shape[1], *x.shape[2:])


def from_batch(out: Tensor, axis: str, batch: int) -> Tensor:
    """(batch, length, H, K) as (B, F, N, H*K)."""
    out = out.flatten(-2).unflatten(0, (batch, out.shape[0] // batch))
    return out.transpose(1, 2) if axis == "time" else out


def _merges(x: Tensor, axis: str) -> bool:
    inner = 2 if axis == "time" else 1
    return x.shape[0] == 1 or x.shape[inner] == 1 or x.stride(0) == x.shape[inner] * x.stride(inner)


def why_not_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    rope: Rope | None = None,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> str | None:
    if q.numel() == 0:
        return "an empty batch"
    if rope is not None:
        return "rotary embedding is not fused there"
    if key_mask is not None:
        return "a query without a key would give NaN there, not 0"
    if not all(_merges(x, axis) for x in (q, k, v)):
        return f"q, k, v would be copied: the batch strides do not merge on the {axis} axis"
    batch = q.shape[0] * q.shape[2 if axis == "time" else 1]
    return f"batch {batch} is above {MAX_BATCH}" if q.is_cuda and batch > MAX_BATCH else None


def why_not_cudnn(q: Tensor, *args: Any, **named: Any) -> str | None:
    if not q.is_cuda:
        return f"cuDNN needs a CUDA tensor, got one on {q.device.type}"
    if q.dtype not in HALVES:
        return f"cuDNN's attention takes bf16 and fp16, got {q.dtype}"
    if not (torch.backends.cudnn.enabled and torch.backends.cuda.cudnn_sdp_enabled()):
        return "cuDNN's attention is switched off; torch.backends.cuda.enable_cudnn_sdp(True)"
    return why_not_sdpa(q, *args, **named)


@constant_in_graphs
@functools.cache
def _function(modules: tuple[str, ...], name: str) -> tuple[Callable | None, str]:
    """The function from the first module that has it, or None and why not: an installed package may fail to import."""
    reasons = []
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name), ""
        except Exception as error:
            # the package was built for another torch, or lacks a dependency of its own
            absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
            reasons += [] if absent else [f"{module} does not import: {' '.join(str(error).split())}"]
    return None, "; ".join(reasons)


def _why_not_library(library: Library, name: str, q: Tensor, *args: Any, **named: Any) -> str | None:
    if not q.is_cuda:
        return f"{name} needs a CUDA tensor, got one on {q.device.type}"
    if q.dtype not in HALVES:
        return f"{name} takes bf16 and fp16, got {q.dtype}"
    if q.shape[-1] > MAX_WIDTH:
        return f"{name} takes a head width up to {MAX_WIDTH}, got {q.shape[-1]}"
    if reason := why_not_sdpa(q, *args, **named):
        return reason
    function, reason = _function(*library)
    missing = f"{name} is not installed; run `pip install {name.replace('_', '-')}`"
    return None if function is not None else reason or missing


def why_not_flash_attn(q: Tensor, *args: Any, **named: Any) -> str | None:
    return _why_not_library(FLASH_ATTN, "flash_attn", q, *args, **named)


def why_not_xformers(q: Tensor, *args: Any, **named: Any) -> str | None:
    return _why_not_library(XFORMERS, "xformers", q, *args, **named)


def sdpa(q: Tensor, k: Tensor, v: Tensor, axis: str, scale: float) -> Tensor:
    views = [to_batch(x, axis).transpose(1, 2) for x in (q, k, v)]  # (batch, H, length, K)
    out = F.scaled_dot_product_attention(views[0], views[1], views[2], scale=scale)
    return from_batch(out.transpose(1, 2), axis, q.shape[0])


def cudnn(q: Tensor, k: Tensor, v: Tensor, axis: str, scale: float) -> Tensor:
    """SDPA restricted to cuDNN's kernel, so that the kernel that was timed is the one that runs."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q, k, v, axis, scale)


def flash_attn(q: Tensor, k: Tensor, v: Tensor, axis: str, scale: float) -> Tensor:
    attend = _function(*FLASH_ATTN)[0]
    assert attend is not None
    out = attend(*(to_batch(x, axis) for x in (q, k, v)), softmax_scale=scale)
    # generations 3 and 4 return (out, lse)
    return from_batch(out if isinstance(out, torch.Tensor) else out[0], axis, q.shape[0])


def xformers(q: Tensor, k: Tensor, v: Tensor, axis: str, scale: float) -> Tensor:
    attend = _function(*XFORMERS)[0]
    assert attend is not None
    out = attend(*(to_batch(x, axis) for x in (q, k, v)), scale=scale)
    return from_batch(out, axis, q.shape[0])


LIBRARIES: dict[str, Callable[[Tensor, Tensor, Tensor, str, float], Tensor]] = {
    "sdpa": sdpa,
    "cudnn": cudnn,
    "flash_attn": flash_attn,
    "xformers": xformers,
}
PROBES = {
    "flash_attn": why_not_flash_attn,
    "xformers": why_not_xformers,
    "sdpa": why_not_sdpa,
    "cudnn": why_not_cudnn,
}


def sdpa_causal(qkv: Tensor, prefix: int) -> Tensor:
    """Causal attention of packed qkv (B, L, 3, H, K) by SDPA; with a prefix in two calls, of which one has a mask."""
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # (B, H, L, K)
    length = q.shape[2]
    if prefix <= 1:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    given = F.scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix])
    if prefix < length:
        mask = torch.ones(length - prefix, length, dtype=torch.bool, device=qkv.device).tril(prefix)
        rest = F.scaled_dot_product_attention(q[:, :, prefix:], k, v, attn_mask=mask)
        given = torch.cat([given, rest], 2)
    return given.transpose(1, 2).flatten(2)


def why_not_sdpa_causal(qkv: Tensor, *others: Any) -> str | None:
    return "an empty batch" if qkv.numel() == 0 else None
