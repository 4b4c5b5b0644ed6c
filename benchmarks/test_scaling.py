"""Time of a pair of blocks, ours and the oracle's, against frames, patches and clips; reports fit the exponents."""

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.contenders import SIDE, models, no_grad
from benchmarks.race import race

S = SIDE // 2
AXES: dict[str, tuple[tuple[int, int, int], ...]] = {
    # (batch, frames, latent side)
    "frames": ((1, 8, S), (1, 16, S), (1, 32, S), (1, 64, S)),
    "patches per frame": ((1, 8, S // 2), (1, 8, S), (1, 8, 2 * S), (1, 8, 4 * S)),
    "clips": ((1, 8, S), (2, 8, S), (4, 8, S), (8, 8, S)),
}


@pytest.mark.parametrize("axis", [pytest.param("frames", marks=pytest.mark.quick), "patches per frame", "clips"])
def test_scaling(axis: str, record: Any, benchmark: Any) -> None:
    name = "Latte-S/2"
    for batch, frames, side in AXES[axis]:
        oracle, ours, inputs = models(name, torch.bfloat16, batch, 2, frames=frames, side=side)
        runs = {"ours": no_grad(partial(ours, *inputs)), "oracle eager": no_grad(partial(oracle, *inputs))}
        at = {"frames": frames, "patches per frame": (side // 2) ** 2, "clips": batch}[axis]
        for contender, lap in race(runs, seconds=1.0).items():
            title = f"{name}, a pair of blocks, {at} {axis}"
            record(title, contender, **lap.__dict__, curve=name, axis=axis, at=float(at))
    benchmark.pedantic(runs["ours"], rounds=1)
