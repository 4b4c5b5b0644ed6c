"""Defects that the criterion must see, each planted in an op that is right otherwise, over the shapes of the tests."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latte_fast import ops, testing
from latte_fast.reference import functional as R

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Defect(NamedTuple):
    fast: Callable
    ref: Callable
    args: tuple
    names: tuple[str, ...] = ("out",)


def randn(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def norm_eps(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Defect:
    """eps 1e-5 where 1e-6 is asked for."""
    group = (2, shape[-1])
    x, shift, scale = (randn(*s, dtype=dtype, device=device, seed=i) for i, s in enumerate((shape, group, group)))
    return Defect(lambda *a: ops.norm_modulate(*a, 1e-5), R.norm_modulate_ref, (x, shift, scale))


def other_gelu(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Defect:
    """The tanh form where the exact one, by erf, is asked for."""
    u, b = randn(*shape, dtype=dtype, device=device), randn(shape[-1], dtype=dtype, device=device, seed=1)
    return Defect(ops.bias_gelu, lambda u, b: F.gelu(u + b), (u, b))


def _attention_args(sizes: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    K, queries, keys = sizes
    q, k, v = (randn(2, 1, n, 2, K, dtype=dtype, device=device, seed=i) for i, n in enumerate((queries, keys, keys)))
    return q, k, v


def last_key(sizes: tuple[int, int, int], dtype: torch.dtype, device: str) -> Defect:
    """Attention that leaves out the last key."""

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.axis_attention(q, k[:, :, :-1], v[:, :, :-1], "space")

    args = _attention_args(sizes, dtype, device)
    return Defect(fast, lambda q, k, v: R.axis_attention_ref(q, k, v, "space"), args)


def operands_in_16_bits(sizes: tuple[int, int, int], dtype: torch.dtype, device: str) -> Defect:
    """fp32 attention whose products take bf16."""

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.axis_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), "space").to(q.dtype)

    args = _attention_args(sizes, dtype, device)
    return Defect(fast, lambda q, k, v: R.axis_attention_ref(q, k, v, "space"), args)


def sums_in_16_bits(sizes: tuple[int, int, int], dtype: torch.dtype, device: str) -> Defect:
    """Attention whose second product adds key after key in 16 bits, as the scores' product does."""
    kept = torch.bfloat16 if dtype == torch.float32 else dtype

    def product(a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros((), dtype=kept, device=a.device)
        for i in range(a.shape[-1]):
            total = (total + a[..., i, None].float() * b[..., i, None, :].float()).to(kept)
        return total

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(2, 3) for x in (q, k, v))
        p = (product(q, k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5).softmax(-1)
        return product(p, v).transpose(2, 3).flatten(-2).to(dtype)

    args = _attention_args(sizes, dtype, device)
    return Defect(fast, lambda q, k, v: R.axis_attention_ref(q, k, v, "space"), args)


def rows_in_16_bits(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Defect:
    """The gradient of a gate that adds row after row in 16 bits."""
    kept = torch.bfloat16 if dtype == torch.float32 else dtype

    class GateResidual(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            ctx.save_for_backward(y, gate)
            return R.gate_residual_ref(x, y, gate)

        @staticmethod
        def backward(ctx, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def, override]
            y, gate = ctx.saved_tensors
            terms, total = R.grouped(d.float() * y.float(), gate.shape[0]), torch.zeros_like(gate, dtype=kept)
            for row in terms.unbind(1):
                total = (total + row).to(kept)
            return d, (R.grouped(d, gate.shape[0]) * gate[:, None]).view_as(d), total.to(gate.dtype)

    x, y, gate = (randn(*s, dtype=dtype, device=device, seed=i) for i, s in enumerate((shape, shape, (2, shape[-1]))))
    return Defect(GateResidual.apply, R.gate_residual_ref, (x, y, gate.requires_grad_()), ("out", "dgate"))


def rope_of_one_head(sizes: tuple[int, int, int], dtype: torch.dtype, device: str) -> Defect:
    """Rotary attention over time whose last head is rotated by the frame before."""
    K, frames, patches = sizes
    angles = torch.arange(frames)[:, None] * 10000.0 ** (-torch.arange(0, K, 2) / K)
    rope = (angles.cos().to(device), angles.sin().to(device))
    wrong = tuple(t.roll(1, 0) for t in rope)

    def rotated(x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1, 4)
        right = R.rotate_ref(x[:, :, :-1], rope)
        return torch.cat([right, R.rotate_ref(x[:, :, -1:], wrong)], 2).permute(0, 3, 1, 2, 4)

    def whole(x: Tensor) -> Tensor:
        return R.rotate_ref(x.permute(0, 2, 3, 1, 4), rope).permute(0, 3, 1, 2, 4)

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.axis_attention(rotated(q), whole(k), v, "time")

    args = tuple(randn(1, frames, patches, 2, K, dtype=dtype, device=device, seed=i) for i in range(3))
    return Defect(fast, lambda q, k, v: R.axis_attention_ref(q, k, v, "time", rope), args)


SPACE = [(8, 1, 5), (72, 16, 33), (128, 32, 5), (64, 32, 77)]
DEFECTS: dict[Callable, tuple[list, tuple[str, ...]]] = {
    norm_eps: ([(2, 5, 64), (2, 3, 384), (2, 2, 1152), (2, 8, 72)], ("fp32",)),
    other_gelu: ([(5, 7), (3, 4, 256), (2, 3, 1536)], ("fp32",)),
    last_key: (SPACE, ("fp32", "bf16", "fp16")),
    operands_in_16_bits: (SPACE, ("fp32",)),
    sums_in_16_bits: (SPACE, ("fp32",)),
    rows_in_16_bits: ([(2, 256, 72), (2, 256, 384)], ("fp32", "bf16", "fp16")),
    rope_of_one_head: ([(8, 2, 1), (64, 16, 3), (72, 33, 1)], ("fp32", "bf16", "fp16")),
}
CELLS = [
    pytest.param(defect, sizes, dtype, id=f"{defect.__name__}-{'x'.join(map(str, sizes))}-{dtype}")
    for defect, (shapes, dtypes) in DEFECTS.items()
    for sizes in shapes
    for dtype in dtypes
]


def assert_seen(defect: Callable, sizes: tuple[int, ...], dtype: str, device: str) -> None:
    fast, ref, args, names = defect(sizes, DTYPES[dtype], device)
    with pytest.raises(AssertionError, match="limit"):
        testing.compare(fast, ref, args, names)
