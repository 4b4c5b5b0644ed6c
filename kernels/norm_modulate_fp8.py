"""norm_modulate_fp8 on Triton: norm_modulate's kernel, whose row leaves the registers as 8-bit values and a scale."""

from torch import Tensor

from latte_fast.kernels import norm_modulate, rows


def norm_modulate_fp8_fwd(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(values (x.shape), their scales (..., 1))."""
    h, h_scale = rows.empty_8bit(x)
    norm_modulate.launch_forward("norm_modulate_fp8_fwd", x, shift, scale, eps, h, h_scale)
    return rows.rounded(h, rows.FP8), h_scale


def why_not(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> str | None:
    return rows.why_not_fp8(x, shift, scale)
