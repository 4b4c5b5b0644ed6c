"""The oracle of every op, `<op>_ref`: plain torch on any device in any dtype. Ops without a faster backend run it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

Rope = tuple[Tensor, Tensor]


def grouped(x: Tensor, groups: int) -> Tensor:
    """Reshapes (..., D) to (G, rows / G, D): G groups of consecutive rows."""
    rows = x.numel() // x.shape[-1]
    return x.reshape(groups, rows // max(groups, 1), x.shape[-1])


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (grouped(h, shift.shape[0]) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)).reshape(h.shape)


def norm_modulate_ref(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """LN(x) * (1 + scale) + shift, no affine; x (..., D), shift and scale (G, D)."""
    return modulated(F.layer_norm(x, x.shape[-1:], eps=eps), shift, scale).to(out_dtype or x.dtype)


# axis -> the dimension of (B, F, N, D) that its mean is over
POOLED = {"space": 2, "time": 1}


def pooled_norm_ref(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    axis: str,
    eps: float = 1e-6,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The mean over an axis of LN(x), times 1 + scale, plus shift; x (B, F, N, D), shift and scale (G, D)."""
    means = F.layer_norm(x, x.shape[-1:], eps=eps).mean(POOLED[axis], keepdim=True)
    return modulated(means, shift, scale).to(out_dtype or x.dtype)


def gate_residual_ref(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y; x, y (..., D), gate (G, D)."""
    groups = gate.shape[0]
    out = grouped(x, groups) + gate.unsqueeze(1) * grouped(y, groups)
    return out.reshape(x.shape).to(x.dtype)


def gate_residual_norm_modulate_ref(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    y_bias: Tensor | None = None,
    pos: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """x' = x + gate * (y + y_bias) + pos; h = LN(x') * (1 + scale) + shift; returns (x', h)."""
    if y_bias is not None:
        y = y + y_bias
    x = gate_residual_ref(x, y, gate)
    if pos is not None:
        x = x + pos.to(x.dtype)
    return x, norm_modulate_ref(x, shift, scale, eps, out_dtype=out_dtype or shift.dtype)


FP8 = torch.float8_e4m3fn
FP8_MOST, INT8_MOST = 448.0, 127.0  # largest number of FP8, and of the integers, which are as many below zero
LEAST_SCALE = 2.0**-100  # whose inverse is still an fp32 number


def widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def quotient(x: Tensor, divisor: float) -> Tensor:
    """x / divisor rounded once; divided by a number, torch would multiply by its rounded inverse on a GPU."""
    return x / torch.full_like(x, divisor)


def rows_fp8_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row of x (..., D) to FP8 after division by its scale, max|x| / 448; (values, scales (..., 1)).

    A row of zeros has the least scale. A row that holds NaN or an infinity is NaN after multiplication by its scale.
    """
    x = widened(x)
    scale = quotient(x.abs().amax(-1, keepdim=True).float(), FP8_MOST).clamp_min(LEAST_SCALE)
    return (x * (1 / scale)).to(FP8), scale


def norm_modulate_fp8_ref(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Applies rows_fp8_ref to LN(x) * (1 + scale) + shift, which is not rounded before."""
    return rows_fp8_ref(norm_modulate_ref(widened(x), widened(shift), widened(scale), eps))


def gate_residual_norm_modulate_fp8_ref(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    y_bias: Tensor | None = None,
    pos: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x' = x + gate * (y + y_bias) + pos in x's dtype, norm_modulate_fp8_ref of x'; returns (x', values, scales)."""
    out = added_once(x, y, gate, y_bias, pos)
    return out, *norm_modulate_fp8_ref(out, shift, scale, eps)


def added_once(x: Tensor, y: Tensor, gate: Tensor, y_bias: Tensor | None, pos: Tensor | None) -> Tensor:
    """x + gate * (y + y_bias) + pos, rounded to x's dtype at the end alone."""
    y = widened(y) if y_bias is None else widened(y) + y_bias
    out = gate_residual_ref(widened(x), y, widened(gate))
    return (out if pos is None else out + pos).to(x.dtype)


def bias_gelu_fp8_ref(u: Tensor, b: Tensor | None, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Applies rows_fp8_ref to tanh-GELU(u + b) * factor, which is not rounded before."""
    a = bias_gelu_ref(widened(u), b)
    return rows_fp8_ref(a if factor is None else a * factor)


def rows_int8_ref(x: Tensor, unsigned: bool = False) -> tuple[Tensor, Tensor]:
    """Rounds each row of x (..., D) to integers after division by its scale, max|x| / 127; (values, scales (..., 1)).

    Nearest, ties to even; values are int8, or with `unsigned` uint8 and 128 more. A row of zeros has the least scale.
    A row that holds NaN or an infinity has the scale NaN, and values that mean nothing.
    """
    x = widened(x)
    most = x.abs().amax(-1, keepdim=True).float()
    # most - most is NaN for an infinity
    scale = quotient(most, INT8_MOST).clamp_min(LEAST_SCALE) + (most - most)
    values = (x * (1 / scale)).round().nan_to_num(0.0)
    return ((values + 128).to(torch.uint8) if unsigned else values.to(torch.int8)), scale


def norm_modulate_int8_ref(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, unsigned: bool = False
) -> tuple[Tensor, Tensor]:
    """Applies rows_int8_ref to LN(x) * (1 + scale) + shift, which is not rounded before."""
    return rows_int8_ref(norm_modulate_ref(widened(x), widened(shift), widened(scale), eps), unsigned)


def gate_residual_norm_modulate_int8_ref(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    *,
    y_bias: Tensor | None = None,
    pos: Tensor | None = None,
    unsigned: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """x' = x + gate * (y + y_bias) + pos in x's dtype, norm_modulate_int8_ref of x'; returns (x', values, scales)."""
    out = added_once(x, y, gate, y_bias, pos)
    return out, *norm_modulate_int8_ref(out, shift, scale, eps, unsigned=unsigned)


def bias_gelu_int8_ref(
    u: Tensor, b: Tensor | None, factor: Tensor | None = None, unsigned: bool = False
) -> tuple[Tensor, Tensor]:
    """Applies rows_int8_ref to tanh-GELU(u + b) * factor, which is not rounded before."""
    a = bias_gelu_ref(widened(u), b)
    return rows_int8_ref(a if factor is None else a * factor, unsigned)


def linear_int8_ref(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """(x w^T) * x_scale * weight_scale + bias, its sums exact; x (..., K) as rows_int8_ref leaves it, weight (N, K)."""
    # sums of integers below 2^24 are exact in fp32, of all others in float64
    wide = torch.float32 if INT8_MOST**2 * x.shape[-1] < 2**24 else torch.float64
    values = x.to(wide) - 128 if x.dtype == torch.uint8 else x.to(wide)
    out = F.linear(values, weight.to(wide)).float() * x_scale * weight_scale
    return (out if bias is None else out + bias).to(out_dtype)


def rotate_ref(x: Tensor, rope: Rope) -> Tensor:
    """Rotates the pairs (2i, 2i+1) of x (..., L, K) by the angles of rope = (cos, sin), each (L, K/2)."""
    cos, sin = rope
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    even, odd = wide[..., 0::2], wide[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def attention_ref(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(scale * q k^T) v over (..., L, K), upstream's `math` path: the product unscaled, then scaled."""
    scores = (q @ k.transpose(-2, -1)) * scale
    if mask is None:
        return scores.softmax(-1) @ v
    # finfo.min keeps a row with no key finite; its probabilities are then zeroed with the rest
    p = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask
    return p @ v


def axis_attention_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axis: str,
    rope: Rope | None = None,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Softmax attention over one axis: q (B, F, Nq, H, K), k and v (B, F, Nk, H, K) -> (B, F, Nq, H*K).

    `space` attends over Nk inside a frame, `time` over F at a patch position. key_mask (B, keys) is True where a key
    counts; a query without keys gives 0. rope rotates q and k on the time axis.
    """
    order = (0, 1, 3, 2, 4) if axis == "space" else (0, 2, 3, 1, 4)  # (B, F, H, N, K) or (B, N, H, F, K)
    q, k, v = (x.permute(order) for x in (q, k, v))
    if rope is not None:
        q, k = rotate_ref(q, rope), rotate_ref(k, rope)
    mask = None if key_mask is None else key_mask[:, None, None, None, :]
    out = attention_ref(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, mask)
    inverse = (0, 1, 3, 2, 4) if axis == "space" else (0, 3, 1, 2, 4)
    return out.permute(inverse).flatten(-2)


def axis_attention_qkv_ref(qkv: Tensor, axis: str, rope: Rope | None = None, scale: float | None = None) -> Tensor:
    """Applies axis_attention_ref to packed qkv (B, F, N, 3, H, K)."""
    q, k, v = qkv.unbind(3)
    return axis_attention_ref(q, k, v, axis, rope, scale)


def bias_gelu_ref(u: Tensor, b: Tensor | None) -> Tensor:
    """tanh-GELU(u + b), u (..., M), b (M,)."""
    return F.gelu(u if b is None else u + b, approximate="tanh")


def conv_transpose3d_ref(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    pad_mode: str = "zeros",
) -> Tensor:
    """F.conv_transpose3d; x (B, C, T, H, W) or (C, T, H, W), w (C, C_out / groups, kT, kH, kW).

    pad_mode="replicate" reads x at the nearest edge where the plain operator reads zeros: x is extended by
    P edge pixels on both sides of an axis, as far as any output reaches, and `padding` by P * stride.
    """
    if pad_mode == "replicate":
        stride, padding, extra, spread = (
            tuple(v) * (3 // len(v)) if isinstance(v, Sequence) else (v,) * 3
            for v in (stride, padding, output_padding, dilation)
        )
        output_padding, dilation = extra, spread
        spans = zip(spread, w.shape[2:], padding, extra, stride, strict=True)
        reach = [max(0, -(-(d * (k - 1) - p + e) // s)) for d, k, p, e, s in spans]
        x = F.pad(x, [r for r in reversed(reach) for _ in range(2)], mode="replicate")
        padding = tuple(p + r * s for p, r, s in zip(padding, reach, stride, strict=True))
    return F.conv_transpose3d(x, w, b, stride, padding, output_padding, groups, dilation)


def norm_silu_halo_ref(x: Tensor, scale: Tensor, shift: Tensor, pads: Sequence[int]) -> Tensor:
    """SiLU(x * scale + shift), its edge repeated; x (B, C, T, H, W), scale and shift (1 or B, C).

    pads has the repetitions in front of and behind T, H and W.
    """
    h = F.silu(x * scale[..., None, None, None] + shift[..., None, None, None]).to(x.dtype)
    return F.pad(h, (*pads[4:], *pads[2:4], *pads[:2]), mode="replicate") if any(pads) else h


def nearest_code_ref(z: Tensor, codes: Tensor) -> Tensor:
    """The number of the code nearest to each row: z (M, D), codes (K, D) -> (M,) int64."""
    return (codes.square().sum(1) - 2 * (z @ codes.t())).argmin(1)


def small_linear_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    residual: Tensor | None = None,
    gelu: bool = False,
    eps: float = 1e-5,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """act(LN(x) w^T + b) + residual; x (M, D), weight (N, D), vectors of D and N, residual (M, N).

    With weight_scale (N,), w is the int8 weight times the scale of its row, by which sums are multiplied.
    """
    h = x if norm_weight is None else F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    if weight_scale is None:
        h = F.linear(h, weight, bias)
    else:
        wide = torch.promote_types(h.dtype, torch.float32)
        h = F.linear(h.to(wide), weight.to(wide)) * weight_scale
        h = (h if bias is None else h + bias).to(x.dtype)
    h = F.gelu(h) if gelu else h
    return h if residual is None else residual + h


def decode_attention_ref(qkv: Tensor, cache: Tensor, position: Tensor, scale: float | None = None) -> Tensor:
    """Writes k and v of qkv (B, 3, H, K) into cache (2, B, H, L, K) at position (1,); attends to 0 .. position."""
    q, k, v = qkv.unsqueeze(3).unbind(1)  # (B, H, 1, K)
    cache[0].index_copy_(2, position, k)
    cache[1].index_copy_(2, position, v)
    seen = torch.arange(cache.shape[3], device=cache.device) <= position
    out = attention_ref(q, cache[0], cache[1], q.shape[-1] ** -0.5 if scale is None else scale, seen)
    return out.flatten(1)


def causal_attention_ref(qkv: Tensor, prefix: int = 0) -> Tensor:
    """Attention of packed qkv (B, L, 3, H, K) in which a token sees those up to itself and the first `prefix`."""
    q, k, v = qkv.transpose(1, 3).unbind(2)  # (B, H, L, K)
    order = torch.arange(qkv.shape[1], device=qkv.device)
    seen = (order <= order[:, None]) | (order < prefix)
    return attention_ref(q, k, v, q.shape[-1] ** -0.5, seen).transpose(1, 2).flatten(2)


@torch.no_grad()
def adamw_ema_ref(
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
    """torch's AdamW, then average = decay * average + (1 - decay) * weight and copy = weight, all in place."""
    adamw(
        list(weights), list(grads), list(moments), list(squares), [], [step - 1 for step in steps], fused=True,
        amsgrad=False, beta1=beta1, beta2=beta2, lr=lr, weight_decay=weight_decay, eps=eps, maximize=False,
    )  # fmt: skip
    for w, average in zip(weights, averages, strict=False):
        average.lerp_(w, 1 - decay)
    for w, copy in zip(weights, copies, strict=False):
        copy.copy_(w)
