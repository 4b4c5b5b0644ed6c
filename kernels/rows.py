"""Rows of D values: leading strides, groups of consecutive rows, a row in two pieces, and the sums over a group."""

import contextlib
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import tiles

MAX_WIDTH = 16384
# least rows of a program in a backward: partial sums, 4 bytes a value and slot, stay small beside the rows summed
PARTIAL_ROWS = 8
FP8 = torch.float8_e4m3fn
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@triton.jit
def row_offset(i_row, n_1, n_2, s_0, s_1, s_2, LEADS: tl.constexpr):
    """Offset of row i_row in a tensor with leading sizes (any, n_1, n_2) and strides (s_0, s_1, s_2).

    Rows are numbered in 32 bits, whose division costs a fifth of one in 64; offsets have 64.
    """
    if LEADS == 1:
        offset = i_row * s_2
    else:
        i_outer, i_inner = i_row.to(tl.int32) // n_2, i_row.to(tl.int32) % n_2
        offset = i_inner.to(tl.int64) * s_2
        if LEADS == 2:
            offset += i_outer.to(tl.int64) * s_1
        else:
            offset += (i_outer % n_1).to(tl.int64) * s_1 + (i_outer // n_1).to(tl.int64) * s_0
    return offset


@triton.jit
def load_row(p, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr):
    """Loads D values as fp32 in two pieces: 1152 is 1024 + 128, where one block would be 2048.

    Rows are loaded one at a time: an (R, 1) column of means would force one layout on both pieces, and the larger one
    would pass through shared memory to get it.
    """
    o_1 = BLOCK_0 + tl.arange(0, BLOCK_1)
    b_0 = tl.load(p + tl.arange(0, BLOCK_0)).to(tl.float32)
    b_1 = tl.load(p + o_1, mask=o_1 < D, other=0.0).to(tl.float32)
    return b_0, b_1


@triton.jit
def store_row(p, b_0, b_1, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr):
    o_1 = BLOCK_0 + tl.arange(0, BLOCK_1)
    tl.store(p + tl.arange(0, BLOCK_0), b_0.to(p.dtype.element_ty))
    tl.store(p + o_1, b_1.to(p.dtype.element_ty), mask=o_1 < D)


@triton.jit
def zero_row(BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr):
    return tl.zeros([BLOCK_0], dtype=tl.float32), tl.zeros([BLOCK_1], dtype=tl.float32)


@triton.jit
def folded(b_0, b_1):
    """The larger piece summed down to the size of the smaller, plus the smaller: mostly values of the same thread."""
    if b_0.shape[0] > b_1.shape[0]:
        b_0 = tl.sum(tl.reshape(b_0, [b_1.shape[0], b_0.shape[0] // b_1.shape[0]]), 1)
    return b_0 + b_1


@triton.jit
def row_sum(b_0, b_1):
    return tl.sum(folded(b_0, b_1), 0)


@triton.jit
def add_pairs(a_0, a_1, b_0, b_1):
    return a_0 + b_0, a_1 + b_1


@triton.jit
def row_sums(a_0, a_1, b_0, b_1):
    """The sums of two rows in one reduction over the program's threads."""
    return tl.reduce((folded(a_0, a_1), folded(b_0, b_1)), 0, add_pairs)


@triton.jit
def centre_row(b_0, b_1, eps, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr):
    """A row minus its mean, zero past D, and 1 / std; two passes over registers, as E[x^2] - E[x]^2 cancels."""
    mean = row_sum(b_0, b_1) / D
    b_0 = b_0 - mean
    b_1 = tl.where(BLOCK_0 + tl.arange(0, BLOCK_1) < D, b_1 - mean, 0.0)
    return b_0, b_1, tl.rsqrt(row_sum(b_0 * b_0, b_1 * b_1) / D + eps)


@triton.jit
def larger(a, b):
    nan: tl.constexpr = tl.PropagateNan.ALL
    return tl.maximum(a, b, propagate_nan=nan)


@triton.jit
def store_row_8bit(p, p_scale, b_0, b_1, D: tl.constexpr, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr):
    """Stores a row, zero past D, as 8-bit values, and its scale: max / 448, of integers max / 127; at least 2^-100.

    The two divisions are of one number a row, and rounded as torch rounds them.
    """
    INT8: tl.constexpr = p.dtype.element_ty == tl.int8
    b_most = tl.abs(b_0)
    if b_0.shape[0] > b_1.shape[0]:
        b_most = tl.reduce(tl.reshape(b_most, [b_1.shape[0], b_0.shape[0] // b_1.shape[0]]), 1, larger)
    b_most = tl.reduce(larger(b_most, tl.abs(b_1)), 0, larger)
    b_scale = larger(tl.div_rn(b_most, 127.0 if INT8 else 448.0), 7.888609052210118e-31)
    if INT8:  # which have no NaN: the scale becomes it where the maximum is infinite
        b_scale += b_most - b_most
    tl.store(p_scale, b_scale)
    b_inverse = tl.div_rn(1.0, b_scale)
    if INT8:
        store_row(p, integers(b_0 * b_inverse), integers(b_1 * b_inverse), D, BLOCK_0, BLOCK_1)
    else:
        store_row(p, b_0 * b_inverse, b_1 * b_inverse, D, BLOCK_0, BLOCK_1)


@triton.jit
def integers(b):
    """Rounds to the nearest int8, ties to even: past 2^23 the last bits of an fp32 number count in ones.

    The bounds also keep the product that is rounded here from being fused with the sum.
    """
    b = tl.minimum(tl.maximum(b, -127.0), 127.0) + 12582912.0
    return b.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit(do_not_specialize=["groups", "programs"])
def sum_partials_kernel(
    partial_ptr, out_0_ptr, out_1_ptr, out_2_ptr, shared_ptr, groups, programs,
    SLOTS: tl.constexpr, D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums partials (G, P, S, D) in a fixed order to a (G, D) for each of three slots, (D,) for the fourth."""
    i_d = tl.program_id(0) % tl.cdiv(D, BLOCK_D)
    i_out = tl.program_id(0) // tl.cdiv(D, BLOCK_D)
    i_slot = tl.minimum(i_out // groups, SLOTS - 1)
    i_g = (i_out - i_slot * groups).to(tl.int64)
    count = tl.where(i_slot == 3, groups * programs, programs)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_sum = tl.zeros([BLOCK_P, BLOCK_D], dtype=tl.float32)
    for i_p in range(0, count, BLOCK_P):
        o_p = i_p + tl.arange(0, BLOCK_P)
        p_partial = partial_ptr + ((i_g * programs + o_p) * SLOTS + i_slot)[:, None] * D + o_d[None, :]
        b_sum += tl.load(p_partial, mask=(o_p < count)[:, None] & m_d[None, :], other=0.0)
    b_out = tl.sum(b_sum, 0)
    o_out = i_g * D + o_d
    if i_slot == 0:
        tl.store(out_0_ptr + o_out, b_out.to(out_0_ptr.dtype.element_ty), mask=m_d)
    elif i_slot == 1:
        tl.store(out_1_ptr + o_out, b_out.to(out_1_ptr.dtype.element_ty), mask=m_d)
    elif i_slot == 2:
        tl.store(out_2_ptr + o_out, b_out.to(out_2_ptr.dtype.element_ty), mask=m_d)
    else:
        tl.store(shared_ptr + o_out, b_out.to(shared_ptr.dtype.element_ty), mask=m_d)


@triton.jit(do_not_specialize=["first_count", "count"])
def sum_rows_kernel(
    partial_ptr, out_ptr, first_count, count,
    FIRST: tl.constexpr, D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums rows of partial (P, D) in a fixed order: `first_count` of them in columns below FIRST, else `count`.

    A program has few columns and many rows at a time, as there may be thousands of rows for few programs.
    """
    o_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    counts = tl.where(o_d < FIRST, first_count, count)
    b_sum = tl.zeros([BLOCK_P, BLOCK_D], dtype=tl.float32)
    for i_p in range(0, tl.maximum(first_count, count), BLOCK_P):
        o_p = i_p + tl.arange(0, BLOCK_P)
        m = (o_p[:, None] < counts[None, :]) & (o_d < D)[None, :]
        b_sum += tl.load(partial_ptr + o_p.to(tl.int64)[:, None] * D + o_d[None, :], mask=m, other=0.0)
    tl.store(out_ptr + o_d, tl.sum(b_sum, 0).to(out_ptr.dtype.element_ty), mask=o_d < D)


def interpreted() -> bool:
    return not isinstance(sum_partials_kernel, triton.JITFunction)


def empty(shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An output tensor; fp32 for bf16 and fp8 if interpreted, which truncates, so that `rounded` lets torch round."""
    wide = interpreted() and dtype in (torch.bfloat16, FP8)
    return torch.empty(shape, dtype=torch.float32 if wide else dtype, device=device)


def rounded(out: Tensor, dtype: torch.dtype) -> Tensor:
    return out if out.dtype == dtype else out.to(dtype)


def guard(x: Tensor):
    """Context in which launches go to the tensor's own device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def pieces(D: int, warps: int, *walked: Tensor) -> dict[str, int]:
    """Two powers of two that cover D, the second masked where D is not their sum.

    Loads of less than 4 bytes a thread are not prefetched, and each row would wait for them: the second piece is wide
    enough for that in every tensor walked, up to the width of the first.
    """
    first = 1 << max((D - 1).bit_length() - 1, 0)
    least = warps * 32 * 4 // min(x.element_size() for x in walked)
    return {"D": D, "BLOCK_0": first, "BLOCK_1": max(tiles.power_of_2(max(D - first, 1)), min(least, first))}


@functools.lru_cache(4096)
def _merge(shape: torch.Size, *strides: tuple[int, ...]) -> tuple[int, tuple, tuple] | None:
    """`merge_rows` on a shape and each tensor's strides; None where more than three dims remain."""
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for dim, size in enumerate(shape[:-1]):
        if size == 1:
            continue
        if sizes and all(m[-1] == s[dim] * size for m, s in zip(merged, strides, strict=True)):
            sizes[-1] *= size
            for m, s in zip(merged, strides, strict=True):
                m[-1] = s[dim]
            continue
        sizes.append(size)
        for m, s in zip(merged, strides, strict=True):
            m.append(s[dim])
    if len(sizes) > 3:
        return None
    if not sizes:
        sizes, merged = [1], [[0] for _ in strides]
    missing = 3 - len(sizes)
    return len(sizes), tuple(([1] * missing + sizes)[1:]), tuple(tuple([0] * missing + m) for m in merged)


def merge_rows(*tensors: Tensor) -> tuple[tuple[Tensor, ...], int, tuple, tuple]:
    """Merges leading dims of tensors of one shape where all allow it, and gives the arguments of `row_offset`.

    (tensors, number of dims left, (n_1, n_2), each tensor's (s_0, s_1, s_2)); more than three dims cost a copy.
    """
    merged = _merge(tensors[0].shape, *(t.stride() for t in tensors))
    if merged is None:
        return merge_rows(*(t.contiguous() for t in tensors))
    return tensors, *merged


def split_rows(
    rows: int, groups: int, config: tiles.RowsConfig, device: torch.device, least: int = 1
) -> tuple[int, int]:
    """(rows a group, programs a group); a program walks every `programs`-th row, `least` or more if possible."""
    per_group = rows // groups
    budget = config.programs_per_sm * tiles.gpu_of(device).multiprocessors
    return per_group, max(1, min(per_group // least, budget // groups))


def sum_partials(partials: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Sums partials (G, P, S, D) fp32 to a (G, D) in dtype for each of the first three slots, and (D,) for a fourth."""
    groups, programs, slots, D = partials.shape
    outs = [empty((groups, D) if slot < 3 else (D,), dtype, partials.device) for slot in range(slots)]
    block_d = min(128, tiles.power_of_2(D))
    grid = ((groups * min(slots, 3) + (slots == 4)) * tiles.ceil_div(D, block_d),)
    with guard(partials):
        sum_partials_kernel[grid](
            partials, *outs, *[outs[0]] * (4 - slots), groups, programs,
            SLOTS=slots, D=D, BLOCK_P=min(32, tiles.power_of_2(programs)), BLOCK_D=block_d, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    return [rounded(out, dtype) for out in outs]


def sum_rows(partials: Tensor, first_count: int, count: int, out: Tensor) -> None:
    """Sums partials (P, 3, D) fp32 to out (3 * D): `first_count` rows of the first slot, `count` of the others."""
    width = partials.shape[-1]
    total = empty(out.shape, out.dtype, out.device) if interpreted() else out
    with guard(partials):
        sum_rows_kernel[(tiles.ceil_div(3 * width, 32),)](
            partials, total, first_count, count, FIRST=width, D=3 * width,
            BLOCK_P=min(256, tiles.power_of_2(max(first_count, count))), BLOCK_D=32, num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
    if total is not out:
        out.copy_(total)


def empty_8bit(x: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """Output tensors for the 8-bit values of x's rows, and for their scales (..., 1)."""
    return empty(x.shape, dtype, x.device), empty((*x.shape[:-1], 1), torch.float32, x.device)


def why_not_fp8(*tensors: Tensor | None) -> str | None:
    """As why_not_rows, on a GPU that has the 8-bit numbers."""
    x = tensors[0]
    if x is not None and x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 9):
        major, minor = torch.cuda.get_device_capability(x.device)
        return f"fp8 (e4m3) needs a GPU of compute capability 8.9 or more, this one has {major}.{minor}"
    return why_not_rows(*tensors)


def why_not_rows(*tensors: Tensor | None) -> str | None:
    """The reason why the row kernels do not serve these tensors, or None."""
    for t in tensors:
        if t is None:
            continue
        if t.dtype not in NAMES:
            return f"the Triton kernels take fp32, bf16 and fp16, got {t.dtype}"
        if t.shape[-1] > MAX_WIDTH:
            return f"the Triton kernels hold a row in registers, up to {MAX_WIDTH} wide, got {t.shape[-1]}"
        if t.numel() // t.shape[-1] >= 2**31:
            return f"the Triton kernels count rows in 32 bits, got {t.numel() // t.shape[-1]}"
    return None
