"""The ops every model is made of; each resolves to a kernel or, where none serves, to the oracle."""

from latte_fast.ops.adamw_ema import adamw_ema
from latte_fast.ops.axis_attention import axis_attention, axis_attention_qkv
from latte_fast.ops.causal_attention import causal_attention
from latte_fast.ops.conv_transpose3d import conv_transpose3d
from latte_fast.ops.decode_attention import decode_attention
from latte_fast.ops.fp8 import bias_gelu_fp8, gate_residual_norm_modulate_fp8, norm_modulate_fp8, rows_fp8
from latte_fast.ops.gate_residual import gate_residual
from latte_fast.ops.gate_residual_norm_modulate import gate_residual_norm_modulate
from latte_fast.ops.int8 import (
    bias_gelu_int8,
    gate_residual_norm_modulate_int8,
    linear_int8,
    norm_modulate_int8,
    rows_int8,
)
from latte_fast.ops.layers import attention_layer, mlp_layer
from latte_fast.ops.linear_gelu import bias_gelu, linear_gelu
from latte_fast.ops.nearest_code import nearest_code
from latte_fast.ops.norm_modulate import norm_modulate
from latte_fast.ops.norm_silu_halo import norm_silu_halo
from latte_fast.ops.pooled_norm import pooled_norm
from latte_fast.ops.small_linear import small_linear

__all__ = [
    "adamw_ema",
    "attention_layer",
    "axis_attention",
    "axis_attention_qkv",
    "bias_gelu",
    "bias_gelu_fp8",
    "bias_gelu_int8",
    "causal_attention",
    "conv_transpose3d",
    "decode_attention",
    "gate_residual",
    "gate_residual_norm_modulate",
    "gate_residual_norm_modulate_fp8",
    "gate_residual_norm_modulate_int8",
    "linear_gelu",
    "linear_int8",
    "mlp_layer",
    "nearest_code",
    "norm_modulate",
    "norm_modulate_fp8",
    "norm_modulate_int8",
    "norm_silu_halo",
    "pooled_norm",
    "rows_fp8",
    "rows_int8",
    "small_linear",
]
