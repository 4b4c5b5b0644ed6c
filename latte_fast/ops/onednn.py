"""Products of integers on the CPU by oneDNN, which multiplies packed weights; a row's scale is left to what reads it.

oneDNN takes int8 rows on AMX. Elsewhere these run in its reference code, thousands of times slower, and rows are uint8
with a zero point of 128. Without VNNI sums of two products saturate in 16 bits: such processors are not served.
"""

import functools
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latte_fast import _ext, backends
from latte_fast._ext.axis_attention import Rope
from latte_fast._ext.int8 import bias_gelu_int8_into, empty_rows, scale_rows
from latte_fast._ext.linear import attention_in_parts, rows_at_once
from latte_fast.tracing import constant_in_graphs


class Served(NamedTuple):
    """How oneDNN multiplies integers on this processor."""

    why_not: str | None = None  # why it does not, None where it does
    unsigned: bool = True  # whether rows are to be uint8
    bf16: bool = True  # whether it writes bf16, which without instructions for it ends in the reference code too


@constant_in_graphs
def why_not() -> str | None:
    """Returns why the CPU has no products of integers, None where it has; tried once."""
    reason = _ext.why_not_built()
    return reason if reason is not None else served().why_not


@constant_in_graphs
def wants_unsigned() -> bool:
    """Returns whether rows are to be uint8 for these products."""
    return why_not() is None and served().unsigned


# least time of a product of 1.6 million terms by oneDNN's reference code is ten times this, by its own a hundredth
SLOW = 5e-3


@functools.cache
def served() -> Served:
    """Multiplies the largest integers, and sees whether sums are exact and what is fast."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(0, 2, (n, 256), generator=generator) * 254 - 127 for n in (64, 96))
    # rows of one sign, whose sums are the largest
    x[0], w[0] = 127, 127
    want, weight, ones = (x @ w.t()).float(), w.to(torch.int8), torch.ones(96)
    forms = {True: (x + 128).to(torch.uint8), False: x.to(torch.int8)}
    try:
        packed = pack(weight)
        if not torch.equal(unpack(packed), weight):
            return Served("oneDNN does not give its packed weights back")
        if not torch.equal(multiply(forms[True], packed, ones, torch.float32), want):
            return Served("oneDNN's sums of integers saturate on this processor, which has no VNNI")
        if _seconds(forms[True], packed, ones, torch.float32) > SLOW:
            return Served("oneDNN multiplies integers by its reference code on this processor")
        signed = torch.cpu._is_amx_tile_supported() and _seconds(forms[False], packed, ones, torch.float32) < SLOW
        signed = signed and torch.equal(multiply(forms[False], packed, ones, torch.float32), want)
        return Served(None, not signed, _seconds(forms[not signed], packed, ones, torch.bfloat16) < SLOW)
    except RuntimeError as error:
        return Served(f"oneDNN: {str(error).splitlines()[0]}")


def _seconds(*args: Any) -> float:
    laps = []
    for _ in range(3):  # the first makes the code
        start = time.perf_counter()
        multiply(*args)
        laps.append(time.perf_counter() - start)
    return min(laps)


def pack(weight: Tensor) -> Tensor:
    """Returns a weight (N, K) of int8 as oneDNN multiplies it, for any number of rows."""
    return torch.ops.onednn.qlinear_prepack(weight.contiguous(), [rows_at_once(torch.bfloat16), weight.shape[1]])


def unpack(packed: Tensor) -> Tensor:
    return packed.to_dense().t().contiguous()


@functools.lru_cache(64)
def _zeros(count: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(count, dtype=torch.int32)


def multiply(values: Tensor, packed: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns values w^T * weight_scale; values (M, K) int8, or uint8 that is 128 more; dtype fp32 or bf16."""
    point = 128 if values.dtype == torch.uint8 else 0
    zeros = _zeros(weight_scale.shape[0])
    return torch.ops.onednn.qlinear_pointwise(
        values, 1.0, point, packed, weight_scale, zeros, None, 1.0, 0, dtype, "none", [], ""
    )


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What oneDNN writes for a result of a dtype."""
    return torch.bfloat16 if dtype == torch.bfloat16 and served().bf16 else torch.float32


def linear(
    values: Tensor,
    scale: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """Returns values w^T * scale * weight_scale + bias; values (..., K), scale (..., 1).

    Some rows at a time, whose products are in the caches when they are scaled.
    """
    count, wide = weight_scale.shape[0], accumulator(dtype)
    values, rows = values.flatten(0, -2), values.shape[:-1]
    out = torch.empty((len(values), count), dtype=wide) if out is None else out
    step = rows_at_once(torch.bfloat16)
    for x, s, to in zip(values.split(step), scale.view(-1, 1).split(step), out.split(step), strict=True):
        scale_rows(multiply(x, packed, weight_scale, wide), s, bias, to)
    return out.to(dtype).view(*rows, count)


class Layer(NamedTuple):
    """A linear layer of int8 as its products read it."""

    packed: Tensor
    weight_scale: Tensor  # (N,)
    bias: Tensor | None  # (N,)
    input_factor: Tensor | None = None  # (K,), what its input was multiplied by


def mlp(values: Tensor, scale: Tensor, fc1: Layer, fc2: Layer, dtype: torch.dtype) -> Tensor:
    """Returns fc2 of tanh-GELU of fc1, without fc2's bias; values (..., K), scale (..., 1).

    Some rows at a time, which stay in the caches from fc1's product to fc2's sums.
    """
    hidden, count = len(fc1.weight_scale), len(fc2.weight_scale)
    wide, step = accumulator(dtype), rows_at_once(torch.bfloat16)
    values, rows = values.flatten(0, -2), values.shape[:-1]
    out = torch.empty((len(values), count), dtype=wide)
    bias = torch.zeros(hidden) if fc1.bias is None else fc1.bias
    a, a_scale = empty_rows(values.new_empty((min(step, len(values)), hidden)), values.dtype == torch.uint8)
    for x, s, to in zip(values.split(step), scale.view(-1, 1).split(step), out.split(step), strict=True):
        part, part_scale = a[: len(x)], a_scale[: len(x)]
        u = multiply(x, fc1.packed, fc1.weight_scale, wide)
        bias_gelu_int8_into(u, bias, fc2.input_factor, s, part, part_scale)
        scale_rows(multiply(part, fc2.packed, fc2.weight_scale, wide), part_scale, None, to)
    return out.to(dtype).view(*rows, count)


def attention(
    values: Tensor,
    scale: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    heads: int,
    axis: str,
    rope: Rope | None,
) -> Tensor | None:
    """Returns axis_attention of `linear` for values (B, F, N, D); None where the C++ kernel does not serve it."""
    columns = weight_scale.shape[0]
    if accumulator(dtype) != dtype or values.dim() != 4 or 0 in values.shape:
        return None
    probe = torch.empty((0, *values.shape[1:3], heads, columns // (3 * heads)), dtype=dtype)
    forced = backends.state().get("axis_attention", "auto") not in ("auto", "cpu")
    if forced or backends.choose("axis_attention", probe, probe, probe, axis, rope, 1.0, None) != "cpu":
        return None
    rows, scales = values.flatten(0, -2), scale.view(-1, 1)

    def project(part: slice, out: Tensor) -> None:
        linear(rows[part], scales[part], packed, weight_scale, bias, dtype, out)

    return attention_in_parts(values.shape[:3], dtype, project, columns, None, heads, axis, rope)
