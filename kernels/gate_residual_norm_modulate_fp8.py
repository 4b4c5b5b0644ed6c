"""gate_residual_norm_modulate_fp8 on Triton: its bf16 kernel, with h as 8-bit values and scales."""

from torch import Tensor

from latte_fast.kernels import gate_residual_norm_modulate, rows


def gate_residual_norm_modulate_fp8_fwd(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float,
    y_bias: Tensor | None,
    pos: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x' in x's dtype, values of h (x.shape), their scales (..., 1))."""
    x_out = rows.empty(x.shape, x.dtype, x.device)
    h, h_scale = rows.empty_8bit(x)
    gate_residual_norm_modulate.launch_forward(
        "gate_residual_norm_modulate_fp8_fwd", x, y, gate, shift, scale, eps, y_bias, pos, x_out, h, h_scale
    )
    return rows.rounded(x_out, x.dtype), rows.rounded(h, rows.FP8), h_scale


def why_not(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    y_bias: Tensor | None = None,
    pos: Tensor | None = None,
) -> str | None:
    return rows.why_not_fp8(x, y, gate, shift, scale, y_bias, pos)
