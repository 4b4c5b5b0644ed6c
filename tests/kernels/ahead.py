"""Compiles kernels for GPUs that are not here and prints what each holds.

They are those of the 3D-VQGAN, FlexDiT, 8-bit inference (fp8, int8rows), decoding (int8, tokens) and training; in a
process of its own, as the tests interpret kernels.

python -m tests.kernels.ahead vqgan|flexdit|fp8|int8rows|int8|tokens|training TARGET
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict

import torch
import triton

from benchmarks import compile_ahead
from latte_fast.kernels import (
    adamw_ema,
    axis_attention,
    bias_gelu_fp8,
    causal_attention,
    decode_attention,
    gate_residual_norm_modulate_fp8,
    linear_int8,
    nearest_code,
    norm_modulate_fp8,
    norm_silu_halo,
    pooled_norm,
    rows_fp8,
    small_linear,
)
from latte_fast.kernels import int8 as int8_kernels

PAIRS = ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32), (torch.float32, torch.bfloat16))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def vqgan() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for channels in (64, 256):
            x = meta(2, channels, 16, 32, 32, dtype=dtype).to(memory_format=torch.channels_last_3d)
            scale = meta(1, channels)
            for pads in ((1,) * 6, (0,) * 6):
                out = norm_silu_halo.norm_silu_halo_fwd(x, scale, scale, pads)
                norm_silu_halo.norm_silu_halo_bwd(out, x, scale, scale, pads)
    nearest_code.nearest_code_fwd(meta(2048, 256), meta(16384, 256))


def flexdit() -> None:
    for wide, narrow in PAIRS:
        for width in (1152, 768, 384):
            x = meta(4, 16, 256, width, dtype=wide)
            shift, scale = meta(4, 6 * width, dtype=narrow).chunk(6, dim=-1)[:2]
            for axis in ("space", "time"):
                h = pooled_norm.pooled_norm_fwd(x, shift, scale, axis, 1e-6, narrow)
                pooled_norm.pooled_norm_bwd(h, x, scale, axis, 1e-6)


def fp8() -> None:
    for wide, narrow in PAIRS:
        for width in (1152, 768, 384):
            x, y = meta(4, 16, 256, width, dtype=wide), meta(4, 16, 256, width, dtype=narrow)
            shift, scale, gate = meta(4, 6 * width, dtype=narrow).chunk(6, dim=-1)[:3]
            bias, pos = meta(width, dtype=narrow), meta(1, 16, 1, width, dtype=wide)
            norm_modulate_fp8.norm_modulate_fp8_fwd(x, shift, scale, 1e-6)
            for table in (None, pos):
                gate_residual_norm_modulate_fp8.gate_residual_norm_modulate_fp8_fwd(
                    x, y, gate, shift, scale, 1e-6, bias, table
                )
            if wide == narrow:
                u = meta(4, 16, 256, 4 * width, dtype=narrow)
                for factor in (None, meta(4 * width)):
                    bias_gelu_fp8.bias_gelu_fp8_fwd(u, u[0, 0, 0], factor)
                rows_fp8.rows_fp8_fwd(x)


def int8rows() -> None:
    """Rows that leave as integers, and the products of XL/2, B/2 and S/2 of one clip and of eight."""
    for wide, narrow in PAIRS:
        for width in (1152, 768, 384):
            x, y = meta(4, 16, 256, width, dtype=wide), meta(4, 16, 256, width, dtype=narrow)
            shift, scale, gate = meta(4, 6 * width, dtype=narrow).chunk(6, dim=-1)[:3]
            bias = meta(width, dtype=narrow)
            int8_kernels.norm_modulate_int8_fwd(x, shift, scale, 1e-6, False)
            int8_kernels.gate_residual_norm_modulate_int8_fwd(x, y, gate, shift, scale, 1e-6, bias, None, False)
            if wide == torch.bfloat16:  # with the factor of the next layer's input the modulation is fp32
                b, s = meta(4, 2 * width).chunk(2, dim=-1)
                int8_kernels.norm_modulate_int8_fwd(x, b, s, 1e-6, False)
                int8_kernels.gate_residual_norm_modulate_int8_fwd(x, y, gate, b, s, 1e-6, bias, None, False)
            if wide == narrow:
                u = meta(4, 16, 256, 4 * width, dtype=narrow)
                for factor in (None, meta(4 * width)):
                    int8_kernels.bias_gelu_int8_fwd(u, u[0, 0, 0], factor, False)
                int8_kernels.rows_int8_fwd(x, False)
    for rows in (256, 4096, 32768):
        for width in (1152, 768, 384):
            for n, k, biased in ((3, 1, True), (4, 1, False), (1, 4, True)):
                values, weight = (meta(m, k * width, dtype=torch.int8) for m in (rows, n * width))
                bias = meta(n * width, dtype=torch.bfloat16) if biased else None
                linear_int8.linear_int8_fwd(values, meta(rows, 1), weight, meta(n * width), bias, torch.bfloat16)


def attention(dtype: torch.dtype) -> None:
    for prefix in (0, 512):
        qkv = meta(2, 1280, 3, 16, 64, dtype=dtype)
        out, lse = causal_attention.causal_attention_fwd(qkv, prefix, True)
        causal_attention.causal_attention_bwd(out, qkv, out, lse, prefix)


def small_linears(rows: int, dtype: torch.dtype, int8: bool) -> None:
    """The linear layers of a step of the authors' transformer."""
    width = 1024
    layers = [(width, 3 * width, True), (width, width, False), (width, 4 * width, True), (4 * width, width, False)]
    for depth, cols, normed in layers:
        x, bias, residual = (meta(*s, dtype=dtype) for s in ((rows, depth), (cols,), (rows, cols)))
        w, scale = meta(cols, depth, dtype=torch.int8 if int8 else dtype), meta(cols) if int8 else None
        norm = (meta(depth, dtype=dtype),) * 2 if normed else (None, None)
        more = (None if normed else residual, cols > 3 * width, 1e-5, scale)
        small_linear.small_linear_fwd(x, w, bias, *norm, *more)


def int8() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for rows in (1, 8):
            small_linears(rows, dtype, True)


def tokens() -> None:
    """The authors' transformer, layers of 1,024 in 16 heads: the launches of a step, and a clip's attention."""
    for dtype in (torch.bfloat16, torch.float32):
        position = meta(1, dtype=torch.int64)
        for rows in (1, 8):
            small_linears(rows, dtype, False)
            qkv, cache = meta(rows, 3, 16, 64, dtype=dtype), meta(2, rows, 16, 1024, 64, dtype=dtype)
            decode_attention.decode_attention_fwd(qkv, cache, position, 0.125)
        attention(dtype)


def training() -> None:
    """Attention's backward with the sums for the bias of q, k and v, and the optimizer's step."""
    for dtype in (torch.bfloat16, torch.float32):
        for width, heads in ((1152, 16), (768, 12)):
            for axis, patches in (("time", 256), ("space", 256), ("space", 1024)):
                q, k, v = meta(4, 16, patches, 3, heads, width // heads, dtype=dtype).unbind(3)
                out, lse, bias = meta(4, 16, patches, width, dtype=dtype), meta(4, 16, patches, heads), meta(3 * width)
                axis_attention.axis_attention_bwd(
                    out, q, k, v, out, lse, axis, None, 0.1, None, q, k, v, bias.to(dtype)
                )
    for copy in (None, torch.bfloat16):
        for size in (1152, 1153):  # the second has no 16 bytes at a time
            w = [meta(size)]
            copies = [] if copy is None else [meta(size, dtype=copy)]
            adamw_ema.adamw_ema_fwd(w, w, w, w, [meta(1)], w, copies, 1e-4, 0.9, 0.999, 1e-8, 0.01, 0.9999)


MODELS: dict[str, Callable[[], None]] = {
    "vqgan": vqgan,
    "flexdit": flexdit,
    "fp8": fp8,
    "int8rows": int8rows,
    "int8": int8,
    "tokens": tokens,
    "training": training,
}


def main(model: str, target: int) -> None:
    with compile_ahead.compiling_for(target) as compiled:
        MODELS[model]()
    found = [asdict(compile_ahead.usage(kernel)) | {"triton": triton.__version__} for kernel in compiled]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
