"""Rounding of a weight to 8 bits that knows the layer's inputs: what one column loses, the columns after it make up.

With inputs X and a weight W the layer's error is tr(E X^T X E^T), E the difference of the weights. Columns are rounded
one after the other; each leaves its error to those not yet rounded, by the least squares that X^T X gives.
"""

from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.modules.linear8 import FP8, rows8

MOST = {"fp8": 448.0, "int8": 127.0}  # largest number of a precision
# added to the diagonal of X^T X as a share of its mean: inputs not seen could be anything
DAMPING = 0.01
BLOCK = 128  # columns whose errors are passed on together
KEPT = 64  # rows of a call that are kept to measure the error


class Inputs:
    """Sums X^T X over a layer's calls, and keeps some rows of them; a pre-hook of the layer."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None
        self.rows: list[Tensor] = []

    def __call__(self, layer: nn.Module, args: Any) -> None:
        x = args[0].detach().flatten(0, -2)
        wide = x.float()
        gram = wide.t() @ wide
        self.gram = gram if self.gram is None else self.gram.add_(gram)
        if len(self.rows) < 16:
            self.rows.append(x[:: max(1, len(x) // KEPT)][:KEPT].clone())


def compensated(weight: Tensor, gram: Tensor, precision: str = "fp8") -> tuple[Tensor, Tensor]:
    """Returns a weight (N, K) as 8-bit values and scales (N, 1), rounded for inputs with this X^T X (K, K)."""
    scale, most = rows8(weight, precision).scale, MOST[precision]
    w, wide = weight.double(), scale.double()
    damped = gram.double()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean() + 1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    values = torch.empty(weight.shape, dtype=FP8 if precision == "fp8" else torch.int8, device=weight.device)
    width = w.shape[1]
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        block = w[:, start:end].clone()
        errors = torch.empty_like(block)
        for j in range(end - start):
            i = start + j
            exact = (block[:, j] / wide[:, 0]).clamp(-most, most)
            rounded = exact.float().to(FP8) if precision == "fp8" else exact.round()
            errors[:, j] = (block[:, j] - rounded.double() * wide[:, 0]) / upper[i, i]
            block[:, j + 1 :] -= errors[:, j, None] * upper[i, i + 1 : end]
            values[:, i] = rounded.to(values.dtype)
        w[:, end:] -= errors @ upper[start:end, end:]
    return values, scale
