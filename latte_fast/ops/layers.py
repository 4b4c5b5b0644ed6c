"""Linear layers together with the op that reads their result: `attention_layer` and `mlp_layer`.

While gradients are recorded they are layers and ops one after the other, and the qkv bias gets its gradient from the
attention's backward where a kernel of ours serves it. In inference on the CPU the wide results in between live in
borrowed buffers, and the qkv bias is read by the attention.
"""

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast._ext import linear as cpu
from latte_fast._ext.platforms import why_not_cpu
from latte_fast.ops.attention_checks import checked_scale
from latte_fast.ops.axis_attention import axis_attention_of_linear, axis_attention_qkv, qkv_bias_backend
from latte_fast.ops.checks import check_device, check_rows_like, check_tensor, check_weight, checked_vector
from latte_fast.ops.linear_gelu import linear_gelu
from latte_fast.ops.linear_layer import linear_layer, mlp_kept
from latte_fast.ops.registration import call_directly, records
from latte_fast.reference.functional import Rope


def mlp_layer(h: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor) -> Tensor:
    """tanh-GELU(h w1^T + b1) w2^T.

    Args:
        h: (..., D).
        w1: (M, D).
        b1: (M,) or None.
        w2: (D, M).
    """
    check_rows_like("mlp_layer", "h", h)
    b1 = _checked_bias("mlp_layer", h, w1, b1, ("w1", "b1"))
    check_tensor("mlp_layer", "w2", w2)
    if w2.dim() != 2 or w2.shape[1] != w1.shape[0] or not w2.shape[0]:
        raise ValueError(f"mlp_layer: w2 must be (D, M) with M = {w1.shape[0]}, got {tuple(w2.shape)}")
    check_device("mlp_layer", "w2", w2, h)
    if w2.dtype != w1.dtype and backends.autocast_dtype(h.device.type) is None:
        raise TypeError(f"mlp_layer: w2 must have w1's dtype {w1.dtype}, got {w2.dtype}")
    if b1 is not None and _on_cpu(h, w1, b1, w2) and backends.choose("bias_gelu", h, b1) == "cpu":
        return cpu.mlp(h, w1, b1, w2)
    if b1 is not None and records(h, w1, b1, w2) and not backends.is_forced("bias_gelu"):
        y = mlp_kept(h, w1, b1, w2)
        if y is not None:
            return y
    return linear_layer(linear_gelu(h, w1, b1), w2)


def attention_layer(h: Tensor, w: Tensor, b: Tensor | None, heads: int, axis: str, rope: Rope | None = None) -> Tensor:
    """axis_attention of the packed h w^T + b.

    Args:
        h: (B, F, N, D).
        w: (3 * H * K, D), rows ordered q, k, v, then head, then K.
        b: (3 * H * K,) or None.
        heads: H.
        axis: "space" or "time".
        rope: (cos, sin), each (F, K/2), on the time axis.
    """
    check_tensor("attention_layer", "h", h)
    if h.dim() != 4 or 0 in h.shape[1:]:
        raise ValueError(f"attention_layer: h must be (B, F, N, D), got {tuple(h.shape)}")
    b = _checked_bias("attention_layer", h, w, b, ("w", "b"))
    if not isinstance(heads, (int, torch.SymInt)) or isinstance(heads, bool):
        raise TypeError(f"attention_layer: heads must be an integer, got {type(heads).__name__}")
    if heads < 1 or w.shape[0] % (3 * heads):
        raise ValueError(f"attention_layer: heads must divide a third of w's {w.shape[0]} rows, got {heads}")
    if not isinstance(axis, str) or axis not in ("space", "time"):
        raise ValueError(f"attention_layer: axis must be 'space' or 'time', got {axis!r:.40}")
    if rope is not None or _on_cpu(h, w, b):
        probe = h.new_empty(0, *h.shape[1:3], heads, w.shape[0] // (3 * heads))
        checked_scale("attention_layer", probe, probe, probe, axis, rope, None, None)
        # another backend that was asked for by name judges the call itself, not an empty probe
        fits = _on_cpu(h, w, b) and backends.state().get("axis_attention", "auto") in ("auto", "cpu")
        if fits and backends.choose("axis_attention", probe, probe, probe, axis, rope, 1.0, None) == "cpu":
            return cpu.attention(h, w, b, heads, axis, rope)
    if b is not None and torch.is_grad_enabled() and b.requires_grad and h.numel():
        backend = qkv_bias_backend(h, heads, w.shape[0] // (3 * heads), axis, rope)
        if backend is not None:
            # the bias is a constant to the product, whose backward would sum its gradient in a pass of its own
            qkv = linear_layer(h, w, b.detach()).unflatten(-1, (3, heads, -1))
            return axis_attention_of_linear(backend, qkv, b, axis, rope)
    return axis_attention_qkv(linear_layer(h, w, b).unflatten(-1, (3, heads, -1)), axis, rope)


def _checked_bias(op: str, h: Tensor, w: Tensor, b: Tensor | None, names: tuple[str, str]) -> Tensor | None:
    """The bias of h w^T as the kernels read it."""
    check_weight(op, names[0], w, h)
    if b is None:
        return None
    b = checked_vector(op, names[1], b, h, w.shape[0], "M")
    if b.dtype != w.dtype and backends.autocast_dtype(h.device.type) is None:
        raise TypeError(f"{op}: {names[1]} must have {names[0]}'s dtype {w.dtype}, got {b.dtype}")
    return b


def _on_cpu(h: Tensor, *weights: Tensor | None) -> bool:
    same = h.is_cpu and all(w is None or w.dtype == h.dtype for w in weights)
    return same and call_directly(h, *weights) and why_not_cpu(h) is None
