"""decode_attention: the attention of one new token a sequence to a static cache of keys and values."""

import torch
from torch import Tensor

from latte_fast.ops.checks import check_device, check_tensor, checked_number
from latte_fast.ops.registration import KernelOp, why_no_gradient
from latte_fast.reference.functional import decode_attention_ref

_NAME = "decode_attention"


def decode_attention(qkv: Tensor, cache: Tensor, position: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v of one token over a cache, into which its k and v are written first -> (B, H*K).

    The position is a tensor, so that one CUDA graph serves every position. Kernels do not read what the cache holds
    from it on, which the oracle needs to be finite. There is no gradient.

    Args:
        qkv: (B, 3, H, K), query, key and value of the new token of each sequence.
        cache: (2, B, H, L, K), keys and values of earlier tokens; written in place.
        position: (1,) int64 on qkv's device: number of tokens in the cache, and the place of the new one.
        scale: by default K^-0.5.
    """
    for name, x in (("qkv", qkv), ("cache", cache)):
        check_tensor(_NAME, name, x)
        if x.dim() and x.stride(-1) != 1 and x.shape[-1] != 1:
            raise ValueError(f"{_NAME}: {name} must have a contiguous last dim, got strides {x.stride()}")
    if qkv.dim() != 4 or qkv.shape[1] != 3 or 0 in qkv.shape[1:]:
        raise ValueError(f"{_NAME}: qkv must be (B, 3, H, K), got {tuple(qkv.shape)}")
    batch, _, heads, width = qkv.shape
    if cache.dim() != 5 or (*cache.shape[:3], cache.shape[4]) != (2, batch, heads, width) or not cache.shape[3]:
        want = f"(2, {batch}, {heads}, L, {width})"
        raise ValueError(f"{_NAME}: cache must be (2, B, H, L, K) = {want}, got {tuple(cache.shape)}")
    for name, x in (("qkv", qkv), ("cache", cache)):
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(f"{_NAME}: {name} must not want a gradient, as the cache is written in place")
    if cache.dtype != qkv.dtype:
        raise TypeError(f"{_NAME}: cache must have qkv's dtype {qkv.dtype}, got {cache.dtype}")
    if not isinstance(position, Tensor) or position.layout != torch.strided:
        got = str(position.layout) if isinstance(position, Tensor) else type(position).__name__
        raise TypeError(f"{_NAME}: position must be (1,) int64, got {got}")
    if position.dtype != torch.int64 or position.shape != (1,):
        got = f"{tuple(position.shape)} {position.dtype}"
        raise TypeError(f"{_NAME}: position must be (1,) int64, got {got}")
    check_device(_NAME, "cache", cache, qkv)
    check_device(_NAME, "position", position, qkv)
    # on a GPU a look at the value would wait for it: kernels leave out what lies outside
    if position.device.type == "cpu" and not torch.compiler.is_compiling() and not 0 <= int(position) < cache.shape[3]:
        raise ValueError(f"{_NAME}: position must be in 0 .. {cache.shape[3] - 1}, got {int(position)}")
    return _OP(qkv, cache, position, checked_number(_NAME, "scale", width**-0.5 if scale is None else scale))


_OP = KernelOp(
    _NAME,
    "(Tensor qkv, Tensor(a!) cache, Tensor position, float scale, str backend) -> Tensor out",
    "",
    fake=lambda qkv, *others: qkv.new_empty(qkv.shape[0], qkv.shape[2] * qkv.shape[3]),
    reference=decode_attention_ref,
    why_not=why_no_gradient,
    example=lambda sizes: {
        "qkv": sizes.per_head(1, 3),
        "cache": sizes.per_head(2, 1, 4 * sizes.patches).transpose(2, 3).contiguous(),
        "position": torch.tensor([4 * sizes.patches - 1], device=sizes.device),
        "scale": None,
    },
    # of all keys of the cache
    flops=lambda qkv, cache, *others: 2 * cache[0] * cache[1] * cache[2] * cache[3] * cache[4],
)
