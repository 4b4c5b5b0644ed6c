"""causal_attention on Triton: what its launchers are called, and what they serve."""

from torch import Tensor

from latte_fast.kernels import rows
from latte_fast.kernels.causal_attention_bwd import causal_attention_bwd
from latte_fast.kernels.causal_attention_fwd import causal_attention_fwd

__all__ = ["causal_attention_bwd", "causal_attention_fwd", "why_not"]


def why_not(qkv: Tensor, *others: object) -> str | None:
    if qkv.dtype not in rows.NAMES:
        return f"the Triton kernels take fp32, bf16 and fp16, got {qkv.dtype}"
    if qkv.shape[-1] % 8 or qkv.shape[-1] > 128:
        return f"the Triton kernels take a head width that is a multiple of 8 up to 128, got {qkv.shape[-1]}"
    return None
