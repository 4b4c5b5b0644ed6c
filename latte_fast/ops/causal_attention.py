"""causal_attention: attention of tokens to those before them, and of all to the first `prefix`."""

from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.kernels.attention_libraries import sdpa_causal, why_not_sdpa_causal
from latte_fast.ops.checks import check_tensor
from latte_fast.ops.registration import KernelOp, records
from latte_fast.reference.functional import causal_attention_ref

_NAME = "causal_attention"


def causal_attention(qkv: Tensor, prefix: int = 0) -> Tensor:
    """softmax(q k^T / sqrt(K)) v of tokens that see those up to themselves and the first `prefix` -> (B, L, H*K).

    The backward writes one packed gradient. Without a prefix and by default SDPA serves it, which knows that mask.

    Args:
        qkv: (B, L, 3, H, K) as one linear layer leaves it, any strides but the last.
        prefix: number of first tokens that all tokens see, in 0 .. L.
    """
    check_tensor(_NAME, "qkv", qkv)
    if qkv.dim() != 5 or qkv.shape[2] != 3 or 0 in qkv.shape[1:]:
        raise ValueError(f"{_NAME}: qkv must be (B, L, 3, H, K), got {tuple(qkv.shape)}")
    if qkv.stride(-1) != 1 and qkv.shape[-1] != 1:
        raise ValueError(f"{_NAME}: qkv must have a contiguous last dim, got strides {qkv.stride()}")
    if not isinstance(prefix, int) or isinstance(prefix, bool):
        raise TypeError(f"{_NAME}: prefix must be a number of tokens, got {type(prefix).__name__}")
    if not 0 <= prefix <= qkv.shape[1]:
        raise ValueError(f"{_NAME}: prefix must be in 0 .. {qkv.shape[1]}, got {prefix}")
    auto = backends.autocast_dtype(qkv.device.type)
    if auto is not None and qkv.dtype != torch.float64:
        qkv = qkv.to(auto)
    backend = backends.choose(_NAME, qkv, prefix)
    fixed_order = backends.is_forced(_NAME) or torch.are_deterministic_algorithms_enabled()
    if backend == "triton" and prefix <= 1 and not fixed_order:
        backend = "sdpa"
    if backend == "sdpa":
        return sdpa_causal(qkv, prefix)
    if backend == "reference":
        return causal_attention_ref(qkv, prefix)
    return _OP.run(backend, qkv, prefix, records(qkv))[0]


def _fake(qkv: Tensor, prefix: int, need_lse: bool) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    shape = (batch, length, heads) if need_lse else (0,)
    return qkv.new_empty(batch, length, heads * width), qkv.new_empty(shape, dtype=torch.float32)


def _flops(qkv: Any, prefix: int) -> int:
    """Two products of each query with the keys that it sees."""
    batch, length, _, heads, width = qkv
    seen = prefix * prefix + (length - prefix) * (length + prefix + 1) // 2
    return 4 * batch * heads * width * seen


_OP = KernelOp(
    _NAME,
    "(Tensor qkv, int prefix, bool need_lse, str backend) -> (Tensor out, Tensor lse)",
    "(Tensor dout, Tensor qkv, Tensor out, Tensor lse, int prefix, str backend) -> Tensor dqkv",
    fake=_fake,
    ours=("triton",),
    libraries={"sdpa": why_not_sdpa_causal},
    flops=lambda qkv, prefix, *rest: _flops(qkv, prefix),
    backward_flops=lambda dout, qkv, out, lse, prefix, *rest: 2 * _flops(qkv, prefix),
    # a film of four latent frames, the first of which all see
    example=lambda sizes: {"qkv": sizes.per_head(sizes.clips, 4 * sizes.patches, 3), "prefix": sizes.patches},
)
