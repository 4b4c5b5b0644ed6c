"""The model's own matrix products: every layer, forward and both gradients, at one clip and at eight, with epilogues.

What "products alone" means for a model is the sum of these; the two libraries that torch can prefer are both timed.
"""

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.contenders import FRAMES, SIDE, WIDTHS, large, no_grad
from benchmarks.gemm import LAYERS, by, products
from benchmarks.race import race

TOKENS = FRAMES * (SIDE // 2) ** 2


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("size", "clips"), [("XL", 1), large("XL", 8), large("B", 1), large("B", 8)])
def test_products(size: str, clips: int, layer: str, record: Any, benchmark: Any) -> None:
    width, rows = WIDTHS[size][0], clips * TOKENS
    n, k = (times * width for times in LAYERS[layer])
    for way, run in products(layer, width, rows).items():
        if torch.cuda.is_available():
            runs = {name: no_grad(partial(by, name.lower(), run)) for name in ("cuBLAS", "cuBLASLt")}
        else:
            runs = {"torch": no_grad(run)}
        title = f"{size}/2 {layer} {way}, M = {rows}, N = {n}, K = {k}, bf16"
        for contender, lap in race(dict(runs), seconds=0.5, on_device=True).items():
            fields = {"flops": 2 * rows * n * k, "bytes": 2 * (rows * (n + k) + n * k)}
            rate = f"{fields['flops'] / lap.median / 1e12:.1f} TFLOP/s" if not lap.reason else ""
            record(title, contender, **lap.__dict__, **fields, note=rate)
    benchmark.pedantic(lambda: None, rounds=1)
