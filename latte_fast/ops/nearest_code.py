"""nearest_code: the number of the nearest code of a codebook, without a matrix of distances or of one-hot rows."""

import torch
from torch import Tensor

from latte_fast.ops.checks import check_device, check_tensor
from latte_fast.ops.registration import KernelOp
from latte_fast.reference.functional import nearest_code_ref

_NAME = "nearest_code"


def nearest_code(z: Tensor, codes: Tensor) -> Tensor:
    """The number of the code nearest to each row of z.

    Among equals the first; where two codes are nearer to each other than rounding, either. It has no gradient.

    Args:
        z: (M, D) in fp32 or float64.
        codes: (K, D) of z's dtype.
    """
    for name, x in (("z", z), ("codes", codes)):
        check_tensor(_NAME, name, x)
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{_NAME}: {name} must be fp32 or fp64, got {x.dtype}")
    if z.dim() != 2 or not z.shape[1]:
        raise ValueError(f"{_NAME}: z must be (M, D), got {tuple(z.shape)}")
    if codes.dim() != 2 or not len(codes) or codes.shape[1] != z.shape[1]:
        raise ValueError(f"{_NAME}: codes must be (K, D) with D = {z.shape[1]}, got {tuple(codes.shape)}")
    if codes.dtype != z.dtype:
        raise TypeError(f"{_NAME}: codes must have z's dtype {z.dtype}, got {codes.dtype}")
    check_device(_NAME, "codes", codes, z)
    return _OP(z.detach(), codes.detach())


_OP = KernelOp(
    _NAME,
    "(Tensor z, Tensor codes, str backend) -> Tensor indices",
    "",
    fake=lambda z, codes: z.new_empty(len(z), dtype=torch.int64),
    reference=nearest_code_ref,
    # a VQGAN's codebook and the tokens of its latents
    example=lambda sizes: {
        "z": sizes.randn(sizes.clips * sizes.patches, 256).to(torch.promote_types(sizes.dtype, torch.float32)),
        "codes": sizes.randn(2048, 256).to(torch.promote_types(sizes.dtype, torch.float32)),
    },
    flops=lambda z, codes: 2 * z[0] * z[1] * codes[0],
)
