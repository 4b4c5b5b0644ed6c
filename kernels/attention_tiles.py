"""Parts that the attention kernels share: heads in two pieces, dots over them, rotary embedding, strides."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from latte_fast.kernels import rows, tiles

Rope = tuple[Tensor, Tensor]


@triton.jit
def load_heads(p, m, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr, UPCAST: tl.constexpr):
    """Loads heads of width K at addresses p (..., 1) as (..., K_MAIN) and (..., K_TAIL), zero where m is false.

    A width of 72 becomes 64 + 16, half of it masked: a dot needs at least 16, and a single piece would be 128 wide.
    Without a tail the main piece is returned twice.
    """
    o_k = tl.arange(0, K_MAIN)
    b_main = tl.load(p + o_k, mask=m & (o_k < K) if K < K_MAIN else m, other=0.0)
    b_tail = b_main
    if K_TAIL > 0:
        o_k = K_MAIN + tl.arange(0, K_TAIL)
        b_tail = tl.load(p + o_k, mask=m & (o_k < K), other=0.0)
    if UPCAST:
        b_main, b_tail = b_main.to(tl.float32), b_tail.to(tl.float32)
    return b_main, b_tail


@triton.jit
def store_heads(p, b_main, b_tail, m, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr):
    o_k = tl.arange(0, K_MAIN)
    tl.store(p + o_k, b_main.to(p.dtype.element_ty), mask=m & (o_k < K) if K < K_MAIN else m)
    if K_TAIL > 0:
        o_k = K_MAIN + tl.arange(0, K_TAIL)
        tl.store(p + o_k, b_tail.to(p.dtype.element_ty), mask=m & (o_k < K))


@triton.jit
def store_sums(p, m_row, b_main, b_tail, m, K: tl.constexpr, K_MAIN: tl.constexpr, K_TAIL: tl.constexpr):
    """Stores the sums of heads (..., T, K) over the tokens where m, at addresses p (..., 1) and where m_row."""
    o_k = tl.arange(0, K_MAIN)
    tl.store(p + o_k, tl.sum(tl.where(m, b_main, 0.0), len(b_main.shape) - 2), mask=m_row & (o_k < K))
    if K_TAIL > 0:
        o_k = K_MAIN + tl.arange(0, K_TAIL)
        tl.store(p + o_k, tl.sum(tl.where(m, b_tail, 0.0), len(b_tail.shape) - 2), mask=m_row & (o_k < K))


@triton.jit
def transposed(b):
    return tl.permute(b, (0, 2, 1)) if len(b.shape) == 3 else tl.trans(b)


@triton.jit
def dot_heads(a_main, a_tail, b_main, b_tail, K_TAIL: tl.constexpr):
    """a b^T over the head's width."""
    b_out = tl.dot(a_main, transposed(b_main), input_precision="ieee")
    if K_TAIL > 0:
        b_out = tl.dot(a_tail, transposed(b_tail), b_out, input_precision="ieee")
    return b_out


@triton.jit
def rotate_piece(b, b_cos, b_sin):
    """Rotates the pairs (2i, 2i+1) of the last dim, in fp32."""
    if len(b.shape) == 3:
        b_even, b_odd = tl.split(tl.reshape(b.to(tl.float32), [b.shape[0], b.shape[1], b.shape[2] // 2, 2]))
    else:
        b_even, b_odd = tl.split(tl.reshape(b.to(tl.float32), [b.shape[0], b.shape[1] // 2, 2]))
    b_turned = tl.join(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)
    return tl.reshape(b_turned, b.shape).to(b.dtype)


@triton.jit
def rotate_heads(
    b_main, b_tail, cos_ptr, sin_ptr, o_t, T, SIGN: tl.constexpr, K: tl.constexpr, K_MAIN: tl.constexpr,
    K_TAIL: tl.constexpr,
):  # fmt: skip
    """Rotates heads (..., T, K) by the angles of their tokens o_t (T, 1); SIGN = -1 rotates back."""
    o_k = tl.arange(0, K_MAIN // 2)
    m = (o_t < T) & (o_k < K // 2)
    p = o_t * (K // 2) + o_k
    b_cos = tl.load(cos_ptr + p, mask=m, other=0.0).to(tl.float32)
    b_sin = tl.load(sin_ptr + p, mask=m, other=0.0).to(tl.float32) * SIGN
    b_main = rotate_piece(b_main, b_cos, b_sin)
    if K_TAIL > 0:
        o_k = K_MAIN // 2 + tl.arange(0, K_TAIL // 2)
        m = (o_t < T) & (o_k < K // 2)
        p = o_t * (K // 2) + o_k
        b_cos = tl.load(cos_ptr + p, mask=m, other=0.0).to(tl.float32)
        b_sin = tl.load(sin_ptr + p, mask=m, other=0.0).to(tl.float32) * SIGN
        b_tail = rotate_piece(b_tail, b_cos, b_sin)
    else:
        b_tail = b_main
    return b_main, b_tail


@triton.jit
def place(i_pid, blocks, outer, H: tl.constexpr):
    """(block, batch, outer, head) of a program; blocks of a sequence are neighbours, as they share keys and values."""
    i_s = (i_pid // blocks).to(tl.int64)
    return i_pid % blocks, (i_s // H) // outer, (i_s // H) % outer, i_s % H


@triton.jit
def offset(i_b, i_o, i_h, o_t, s_b, s_o, s_t, s_h, ALIGN: tl.constexpr):
    """(T, 1) offsets of a sequence's tokens."""
    start = tl.multiple_of(i_b * s_b + i_o * s_o + i_h * s_h, ALIGN)
    return start + tl.multiple_of(o_t.to(tl.int64) * s_t, [ALIGN])[:, None]


@triton.jit
def moved(p, i_t, s_t, ALIGN: tl.constexpr):
    """Pointers p advanced by i_t tokens: one addition for all, where `offset` multiplies for each."""
    return p + tl.multiple_of(tl.cast(i_t, tl.int64) * s_t, ALIGN)


@dataclass(frozen=True)
class Problem:
    """Sequences of tokens along one axis: B * outer * H of them, T_q queries and T_k keys each."""

    outer: int
    T_q: int
    T_k: int
    sequences: int
    constants: dict[str, Any]


def strides(x: Tensor, axis: str) -> tuple[int, int, int, int]:
    """(batch, outer, token, head) strides of x (B, F, N, H, K)."""
    b, f, n, h, _ = x.stride()
    return (b, f, n, h) if axis == "space" else (b, n, f, h)


@functools.lru_cache(4096)
def _problem(
    q: torch.Size, k: torch.Size, axis: str, has_mask: bool, dtype: torch.dtype, *strides: tuple[int, ...]
) -> Problem:
    B, F, N, H, K = q
    main = min(128, max(16, 1 << (K.bit_length() - 1)))
    aligned = all(s % 8 == 0 for each in strides for s in each[:-1])
    constants = {
        "H": H,
        "K": K,
        "K_MAIN": main,
        "K_TAIL": max(16, tiles.power_of_2(K - main)) if main < K else 0,
        "HAS_MASK": has_mask,
        # 8 elements of 16 bits are 16 bytes; Triton's own hint needs a multiple of 16, which a stride of 72 is not
        "ALIGN": 8 if aligned else 1,
        # on bf16 the interpreter's dot returns garbage
        "UPCAST": rows.interpreted() and dtype == torch.bfloat16,
    }
    outer, T_q, T_k = (F, N, k[2]) if axis == "space" else (N, F, k[1])
    return Problem(outer, T_q, T_k, B * outer * H, constants)


def problem(q: Tensor, k: Tensor, axis: str, key_mask: Tensor | None, *others: Tensor) -> Problem:
    strides = (x.stride() for x in (q, k, *others))
    return _problem(q.shape, k.shape, axis, key_mask is not None, q.dtype, *strides)


def by_heads(x: Tensor, like: Tensor) -> Tensor:
    """(B, F, N, H*K) as (B, F, N, H, K)."""
    return x.unflatten(-1, like.shape[-2:])


def bytes_of(key_mask: Tensor | None, q: Tensor) -> tuple[Tensor, int]:
    """(mask, its batch stride) for a kernel; without a mask q is passed in its place and never read."""
    if key_mask is None:
        return q, 0
    mask = key_mask.contiguous().view(torch.uint8)
    return mask, mask.stride(0)
