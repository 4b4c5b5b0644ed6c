"""Rounding of a weight to 8 bits that knows the layer's inputs: what one column loses, the columns after it make up.

With inputs X and a weight W the layer's error is tr(E X^T X E^T), E the difference of the weights. Columns are rounded
one after the other; each leaves its error to those not yet rounded, by the least squares that X^T X gives.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast.modules.linear8 import FP8, rows8

MOST = {"fp8": 448.0, "int8": 127.0}  # largest number of a precision
# added to the diagonal of X^T X as a share of its mean: inputs not seen could be anything
DAMPING = 0.01
BLOCK = 128  # columns whose errors are passed on together
KEPT, CALLS = 64, 32  # rows of a call that are kept to measure the error, and calls
# powers of the ratio that evens out channels, of which each layer takes the best; 0 leaves them as they are
EXPONENTS = (0.0, 0.25, 0.375, 0.5, 0.625)


class Inputs:
    """Sums X^T X over a layer's calls, and keeps some rows of them; a pre-hook of the layer."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None
        self.rows: list[Tensor] = []
        self.calls, self.stride = 0, 1

    def __call__(self, layer: nn.Module, args: Any) -> None:
        x = args[0].detach().flatten(0, -2)
        wide = x.float()
        gram = wide.t() @ wide
        self.gram = gram if self.gram is None else self.gram.add_(gram)
        if self.calls % self.stride == 0:
            self.rows.append(x[:: max(1, len(x) // KEPT)][:KEPT].clone())
        self.calls += 1
        if len(self.rows) == CALLS:  # of all of a sampling's steps alike
            self.rows, self.stride = self.rows[::2], 2 * self.stride


def smoothing(weight: Tensor, inputs: Inputs, precision: str) -> tuple[Tensor | None, float]:
    """Returns the factor of a layer's input channels that lets 8 bits change the result least, and its gain in dB.

    A row's step is as large as its largest channel asks for, an output channel's as its largest column. Both are
    evened out by k = (rms of the input's channel / rms of the weight's column)^e: the input is divided by it, the
    column multiplied. The exponent is the best one on the inputs that were seen, rounded to nearest, 0 among them.

    Args:
        weight: (N, K); of layers that read one input, all of theirs.
        inputs: what the layer saw.
        precision: "fp8" or "int8".

    Returns:
        1 / k (K,), fp32, or None where e is 0, and the gain over that.
    """
    assert inputs.gram is not None
    x, w = torch.cat(inputs.rows).float(), weight.float()
    ratio = _bounded(inputs.gram.diagonal().sqrt()) / _bounded(w.square().mean(0).sqrt())
    ratio = ratio / ratio.log().mean().exp()
    want = F.linear(x, w)

    def noise(factor: Tensor) -> float:
        rows, columns = (rows8(t, precision).dequantized() for t in (x * factor, w / factor))
        return float((F.linear(rows, columns) - want).square().sum())

    found = {e: noise(ratio**-e) for e in EXPONENTS}
    best = min(found, key=found.__getitem__)
    if best == 0:
        return None, 0.0
    return ratio**-best, 10 * math.log10(max(found[0.0], 1e-30) / max(found[best], 1e-30))


def _bounded(v: Tensor) -> Tensor:
    """Lifts the least numbers to a thousandth of the largest: a channel that was never seen could hold anything."""
    return v.clamp_min((1e-3 * v.max()).clamp_min(1e-30))


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
