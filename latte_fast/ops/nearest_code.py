"""nearest_code: the number of the nearest code, without the matrix of one-hot rows."""

import torch
from torch import Tensor

from latte_fast.reference.functional import nearest_code_ref

# distances at a time: 16 MB
PART = 1 << 22


def nearest_code(z: Tensor, codes: Tensor) -> Tensor:
    """The number of the code nearest to each row of z."""
    rows = max(1, PART // len(codes))
    return torch.cat([nearest_code_ref(part, codes) for part in z.split(rows)])
