"""norm_silu_halo: a norm given as scale and shift, SiLU, and the repeated edge, in one pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latte_fast.ops.checks import check_device, check_tensor
from latte_fast.ops.registration import KernelOp
from latte_fast.reference.functional import norm_silu_halo_ref

_NAME = "norm_silu_halo"
_WHOLE = (int, torch.SymInt)


def norm_silu_halo(x: Tensor, scale: Tensor, shift: Tensor, pads: Sequence[int] = (0,) * 6) -> Tensor:
    """SiLU(x * scale + shift), its edge repeated.

    What an unpadded convolution after a norm reads: scale and shift hold the norm's statistics and parameters. One read
    of x and one write of the result, whose channels lie side by side (channels_last_3d).

    Args:
        x: (B, C, T, H, W).
        scale: (1, C) for all clips, or (B, C); computed with in fp32 at least.
        shift: as scale.
        pads: repetitions in front of and behind T, H and W.
    """
    check_tensor(_NAME, "x", x)
    if x.dim() != 5 or 0 in x.shape[1:]:
        raise ValueError(f"{_NAME}: x must be (B, C, T, H, W) with no empty axis but the first, got {tuple(x.shape)}")
    if not isinstance(pads, (tuple, list)) or any(isinstance(p, bool) or not isinstance(p, _WHOLE) for p in pads):
        raise TypeError(f"{_NAME}: pads must be six integers, got {pads!r:.40}")
    pads = tuple(pads)
    if len(pads) != 6 or min(pads) < 0:
        raise ValueError(f"{_NAME}: pads must be six numbers from 0 on, in front of and behind T, H and W, got {pads}")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    vectors = [_vector(name, v, x).to(wide).contiguous() for name, v in (("scale", scale), ("shift", shift))]
    if vectors[0].shape != vectors[1].shape:
        shapes = [tuple(v.shape) for v in vectors]
        raise ValueError(f"{_NAME}: shift must have scale's shape {shapes[0]}, got {shapes[1]}")
    return _OP(x, *vectors, pads)


def _vector(name: str, v: Tensor, x: Tensor) -> Tensor:
    check_tensor(_NAME, name, v)
    batch, channels = x.shape[:2]
    if v.dim() != 2 or v.shape[0] not in (1, batch) or v.shape[1] != channels:
        got = tuple(v.shape)
        raise ValueError(f"{_NAME}: {name} must be (1, C) or (B, C) with B = {batch}, C = {channels}, got {got}")
    check_device(_NAME, name, v, x)
    return v


def _fake(x: Tensor, scale: Tensor, shift: Tensor, pads: Sequence[int]) -> Tensor:
    size = [n + pads[2 * i] + pads[2 * i + 1] for i, n in enumerate(x.shape[2:])]
    return _empty((*x.shape[:2], *size), x)


def _empty(shape: Sequence[int], x: Tensor) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)


def _backward_fake(dout: Tensor, x: Tensor, scale: Tensor, shift: Tensor, pads: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x.shape, x), torch.empty_like(scale), torch.empty_like(shift)


_OP = KernelOp(
    _NAME,
    "(Tensor x, Tensor scale, Tensor shift, int[] pads, str backend) -> Tensor out",
    "(Tensor dout, Tensor x, Tensor scale, Tensor shift, int[] pads, str backend) "
    "-> (Tensor dx, Tensor dscale, Tensor dshift)",
    fake=_fake,
    backward_fake=_backward_fake,
    launch_backward=lambda launcher, *args: launcher(*args),
    reference=norm_silu_halo_ref,
    # what a residual block of a VQGAN's decoder normalises
    example=lambda sizes: {
        "x": sizes.randn(sizes.clips, 64, sizes.frames, 32, 32).contiguous(memory_format=torch.channels_last_3d),
        "scale": sizes.randn(1, 64),
        "shift": sizes.randn(1, 64),
        "pads": (1,) * 6,
    },
    elementwise=8,
)
