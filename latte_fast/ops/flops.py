"""FlopCounterMode formulas. Attention counts its matrix products; the elementwise ops count nothing, as torch's do."""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

_OPS = torch.ops.latte_fast


def attention_flops(q: torch.Size, k: torch.Size, axis: str) -> int:
    """q (B, F, Nq, H, K), k (B, F, Nk, H, K): two products of 2 * queries * keys * K."""
    b, f, n, h, width = q
    return 4 * b * f * n * h * width * (k[2] if axis == "space" else f)


def _packed(qkv: torch.Size) -> torch.Size:
    return torch.Size((*qkv[:3], *qkv[4:]))


@register_flop_formula(_OPS.axis_attention)
def _axis_attention(q: Any, k: Any, v: Any, axis: str, *args: Any, **kwargs: Any) -> int:
    return attention_flops(q, k, axis)


# Four products of the backward; the scores it recomputes are this kernel's choice, not needed work.
@register_flop_formula(_OPS.axis_attention_backward)
def _axis_attention_backward(
    dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, axis: str, *args: Any, **kwargs: Any
) -> int:
    return 2 * attention_flops(q, k, axis)


@register_flop_formula(_OPS.axis_attention_qkv)
def _axis_attention_qkv(qkv: Any, axis: str, *args: Any, **kwargs: Any) -> int:
    return attention_flops(_packed(qkv), _packed(qkv), axis)


@register_flop_formula(_OPS.axis_attention_qkv_backward)
def _axis_attention_qkv_backward(dout: Any, qkv: Any, out: Any, lse: Any, axis: str, *args: Any, **kwargs: Any) -> int:
    return 2 * attention_flops(_packed(qkv), _packed(qkv), axis)


def conv_transpose3d_flops(x: torch.Size, w: torch.Size) -> int:
    """x (B, C, T, H, W): every pixel meets every tap and C_out / groups channels, as torch counts it."""
    return 2 * x.numel() * w[1:].numel()


@register_flop_formula(_OPS.conv_transpose3d)
def _conv_transpose3d(x: Any, w: Any, *args: Any, **kwargs: Any) -> int:
    return conv_transpose3d_flops(torch.Size(x), torch.Size(w))


@register_flop_formula(_OPS.conv_transpose3d_backward)
def _conv_transpose3d_backward(dy: Any, x: Any, w: Any, *args: Any, **kwargs: Any) -> int:
    needs = args[5]
    return (needs[0] + needs[1]) * conv_transpose3d_flops(torch.Size(x), torch.Size(w))
