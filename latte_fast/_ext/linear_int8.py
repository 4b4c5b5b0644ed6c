"""Products of integers on the CPU by oneDNN, which multiplies packed weights; a row's scale is left to what reads it.

oneDNN takes int8 rows on AMX. Elsewhere these run in its reference code, thousands of times slower, and rows are uint8
with a zero point of 128. Without VNNI sums of two products saturate in 16 bits: such processors are not served.
"""

import functools
import math
import time

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast._ext.int8 import bias_gelu_int8_into, empty_rows, scale_rows
from latte_fast._ext.linear import rows_at_once
from latte_fast.tracing import constant_in_graphs


@constant_in_graphs
def why_not() -> str | None:
    """Returns why the CPU has no products of integers, None where it has; tried once."""
    reason = _ext.why_not_built()
    return reason if reason is not None else _tried()[1]


@constant_in_graphs
def wants_unsigned() -> bool:
    """Whether rows are to be uint8 for these products."""
    return why_not() is None and _tried()[0]


@functools.cache
def _tried() -> tuple[bool, str | None]:
    """Multiplies the largest integers; returns (unsigned, None), or why oneDNN does not serve."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(0, 2, (n, 256), generator=generator) * 254 - 127 for n in (64, 96))
    # rows of one sign, whose sums are the largest
    x[0], w[0] = 127, 127
    want, w = (x @ w.t()).float(), w.to(torch.int8)
    try:
        packed, ones = pack(w), torch.ones(96)
        seconds = {}
        for unsigned in (True, False) if torch.cpu._is_amx_tile_supported() else (True,):
            rows = (x + 128).to(torch.uint8) if unsigned else x.to(torch.int8)
            for _ in range(2):  # the first makes the code
                start = time.perf_counter()
                got = multiply(rows, packed, ones, torch.float32)
                seconds[unsigned] = time.perf_counter() - start
            if not torch.equal(got, want):
                return True, "oneDNN's sums of integers are not exact on this processor, which lacks VNNI"
        if not torch.equal(unpack(packed), w):
            return True, "oneDNN does not give its packed weights back"
    except RuntimeError as error:
        return True, f"oneDNN: {str(error).splitlines()[0]}"
    return seconds.get(False, math.inf) > 20 * seconds[True] + 1e-3, None


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
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


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


def linear_gelu(
    values: Tensor, scale: Tensor, packed: Tensor, weight_scale: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns tanh-GELU of `linear` as rows of integers like `values`, and their scales."""
    count, step = weight_scale.shape[0], rows_at_once(torch.bfloat16)
    a, a_scale = empty_rows(values.new_empty((*values.shape[:-1], count)), values.dtype == torch.uint8)
    parts = (values.flatten(0, -2), scale.view(-1, 1), a.view(-1, count), a_scale.view(-1, 1))
    for x, s, to, to_scale in zip(*(part.split(step) for part in parts), strict=True):
        bias_gelu_int8_into(multiply(x, packed, weight_scale, accumulator(dtype)), bias, s, to, to_scale)
    return a, a_scale
