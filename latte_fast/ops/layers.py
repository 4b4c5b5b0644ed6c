"""Linear layers together with the op that reads their result: `attention_layer` and `mlp_layer`.

While gradients are recorded they are layers and ops one after the other. In inference on the CPU the wide results in
between live in borrowed buffers, and the qkv bias is read by the attention.
"""

import torch.nn.functional as F
from torch import Tensor

from latte_fast import backends
from latte_fast._ext import linear as cpu
from latte_fast.ops._platform import why_not_cpu
from latte_fast.ops._register import call_directly
from latte_fast.ops.axis_attention import check_extras, check_qkv
from latte_fast.ops.axis_attention_qkv import axis_attention_qkv
from latte_fast.ops.linear_gelu import linear_gelu
from latte_fast.reference.functional import Rope


def mlp_layer(h: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor) -> Tensor:
    """tanh-GELU(h w1^T + b1) w2^T.

    Args:
        h: (..., D).
        w1: (M, D).
        b1: (M,) or None.
        w2: (D, M).
    """
    if b1 is not None and _on_cpu(h, w1, b1, w2) and backends.choose("bias_gelu", h, b1) == "cpu":
        return cpu.mlp(h, w1, b1, w2)
    return F.linear(linear_gelu(h, w1, b1), w2)


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
    if _on_cpu(h, w, b):
        probe = h.new_empty(0, *h.shape[1:3], heads, w.shape[0] // (3 * heads))
        check_qkv("attention_layer", probe, probe, probe, axis)
        check_extras("attention_layer", probe, probe, axis, rope, None)
        if backends.choose("axis_attention", probe, probe, probe, axis, rope, 1.0, None) == "cpu":
            return cpu.attention(h, w, b, heads, axis, rope)
    return axis_attention_qkv(F.linear(h, w, b).unflatten(-1, (3, heads, -1)), axis, rope)


def _on_cpu(h: Tensor, *weights: Tensor | None) -> bool:
    same = all(w is None or w.dtype == h.dtype for w in weights)
    return same and call_directly(h, *weights) and why_not_cpu(h) is None
