"""adamw_ema on Triton: one launch over all weights of a list, which it finds by a table of their addresses."""

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles

CHUNK, BLOCK = 8192, 1024  # values of a program, and of one turn of its loop
# a row of the table: addresses of weight, gradient, moment, square, step, average and copy; number of values
COLUMNS = 8
FACTORS = 8  # numbers in fp64 before the table


@triton.jit
def lerp(b_from, b_to, weight):
    """b_from + weight (b_to - b_from), from the nearer end, as torch has it."""
    near = weight < 0.5
    b_factor = tl.broadcast_to(tl.where(near, weight, weight - 1), b_to.shape)
    return tl.fma(b_factor, b_to - b_from, tl.where(near, b_from, b_to))


@triton.jit
def address(p, like_ptr, ALIGNED: tl.constexpr):
    """The pointer stored at p, to values of like_ptr's type."""
    found = tl.load(p).to(tl.pointer_type(like_ptr.dtype.element_ty))
    return tl.multiple_of(found, 16) if ALIGNED else found


@triton.jit
def adamw_ema_kernel(
    factor_ptr, table_ptr, chunk_ptr, weight_ptr, copy_ptr,
    HAS_AVERAGE: tl.constexpr, HAS_COPY: tl.constexpr, ALIGNED: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Updates chunk_ptr[program] = (weight's number, chunk of it); weight_ptr and copy_ptr lend their types alone."""
    p_row = table_ptr + tl.load(chunk_ptr + 2 * tl.program_id(0)).to(tl.int64) * COLUMNS
    i_first = tl.load(chunk_ptr + 2 * tl.program_id(0) + 1).to(tl.int64) * CHUNK
    p_w = address(p_row, weight_ptr, ALIGNED)
    p_g = address(p_row + 1, weight_ptr, ALIGNED)
    p_m = address(p_row + 2, weight_ptr, ALIGNED)
    p_v = address(p_row + 3, weight_ptr, ALIGNED)
    step = tl.load(address(p_row + 4, weight_ptr, False)).to(tl.float64)
    p_average = address(p_row + 5, weight_ptr, ALIGNED)
    p_copy = address(p_row + 6, copy_ptr, ALIGNED)
    values = tl.load(p_row + 7)
    if ALIGNED:
        values = tl.multiple_of(values, 4)
    lr = tl.load(factor_ptr)
    rate = (lr / (1 - tl.exp2(step * tl.load(factor_ptr + 1)))).to(tl.float32)
    root = tl.sqrt(1 - tl.exp2(step * tl.load(factor_ptr + 2))).to(tl.float32)
    lost = lr * tl.load(factor_ptr + 3)
    eps = tl.load(factor_ptr + 4).to(tl.float32)
    rest_1, rest_2 = tl.load(factor_ptr + 5), tl.load(factor_ptr + 6)
    rest_average = tl.load(factor_ptr + 7).to(tl.float32)
    for i in range(0, CHUNK, BLOCK):
        o = i_first + i + tl.arange(0, BLOCK)
        m = o < values
        b_g = tl.load(p_g + o, mask=m, other=0.0)
        # in fp64, rounded once: where a gradient undoes a moment, its last bit is many of the change's
        b_wide = b_g.to(tl.float64)
        b_m = (tl.load(p_m + o, mask=m, other=0.0) * (1 - rest_1) + rest_1 * b_wide).to(tl.float32)
        b_v = (tl.load(p_v + o, mask=m, other=0.0) * (1 - rest_2) + rest_2 * b_wide * b_wide).to(tl.float32)
        # an approximate root and quotient would each be off by more than one bit
        b_change = tl.div_rn(rate * b_m, tl.div_rn(tl.sqrt_rn(b_v), root) + eps)
        b_w = tl.load(p_w + o, mask=m, other=0.0)
        b_w = (b_w - lost * b_w).to(tl.float32) - b_change
        tl.store(p_m + o, b_m, mask=m)
        tl.store(p_v + o, b_v, mask=m)
        tl.store(p_w + o, b_w, mask=m)
        if HAS_AVERAGE:
            b_average = lerp(tl.load(p_average + o, mask=m, other=0.0), b_w, rest_average)
            tl.store(p_average + o, b_average, mask=m)
        if HAS_COPY:
            tl.store(p_copy + o, b_w.to(copy_ptr.dtype.element_ty), mask=m)


@functools.lru_cache(64)
def chunks(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """(programs, 2) int32: the number of a tensor of these sizes, and of a chunk of it."""
    found = [(i, chunk) for i, n in enumerate(sizes) for chunk in range(tiles.ceil_div(n, CHUNK))]
    return torch.tensor(found, dtype=torch.int32).reshape(-1, 2).to(device)


def is_aligned(row: Sequence[int]) -> bool:
    """Whether a row of the table allows 16 bytes at a time: addresses but for the step's, and the number of values."""
    return not any(n % 16 for i, n in enumerate(row[:-1]) if i != 4) and row[-1] % 4 == 0


def adamw_ema_fwd(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    averages: Sequence[Tensor],
    copies: Sequence[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decay: float,
) -> None:
    """Writes weights, moments, squares, averages and copies in place."""
    first, rounded = weights[0], copies
    if copies and rows.interpreted() and copies[0].dtype == torch.bfloat16:
        rounded = [torch.empty_like(w) for w in weights]
    pointers = [[t.data_ptr() for t in some] for some in (weights, grads, moments, squares, steps, averages, rounded)]
    lists = [some or [0] * len(weights) for some in pointers]
    table = list(zip(*lists, (w.numel() for w in weights), strict=True))
    logs = [math.log2(beta) if beta else -math.inf for beta in (beta1, beta2)]
    factors = torch.tensor([lr, *logs, weight_decay, eps, 1 - beta1, 1 - beta2, 1 - decay], dtype=torch.float64)
    for aligned in (True, False):
        some = [row for row in table if is_aligned(row) == aligned]
        if not any(row[-1] for row in some):
            continue
        numbers = torch.cat([factors.view(torch.int64), torch.tensor(some, dtype=torch.int64).flatten()])
        numbers = numbers.to(first.device, non_blocking=True)
        part = chunks(tuple(row[-1] for row in some), first.device)
        with rows.guard(first):
            adamw_ema_kernel[(len(part),)](
                numbers[:FACTORS].view(torch.float64), numbers[FACTORS:], part, first, rounded[0] if copies else first,
                HAS_AVERAGE=bool(averages), HAS_COPY=bool(copies), ALIGNED=aligned, COLUMNS=COLUMNS, CHUNK=CHUNK,
                BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    if rounded is not copies:
        torch._foreach_copy_(list(copies), list(rounded))


def why_not(*args: object) -> None:
    """This kernel serves whatever the op accepts."""
