"""What a training forward keeps for its backward, counted on two and four blocks and extended to the whole model.

The largest batch on 80 and 141 GB follows, with weights and gradients in bf16, AdamW's two moments, master weights and
their average in fp32; in the backward one block's activations are live on top.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.bytes import kept_bytes
from benchmarks.contenders import FRAMES, PRESETS, SIDE, device
from latte_fast import Latte, reference
from latte_fast.modules.recompute import POLICIES

CARDS = {"80 GB": 80e9, "141 GB": 141e9}
STATE = 2 + 2 + 4 * 4  # bytes per parameter


def largest(parameters: int, kept: int, depth: int) -> str:
    each = kept + kept / depth
    fits = [f"{int((size - STATE * parameters) / each)} on {name}" for name, size in CARDS.items()]
    return "largest batch " + ", ".join(fits)


@pytest.mark.parametrize("name", [pytest.param("Latte-B/2", marks=pytest.mark.quick), "Latte-XL/2"])
def test_kept_for_backward(name: str, record: Any, benchmark: Any) -> None:
    kwargs = PRESETS[name] | {"num_frames": FRAMES, "input_size": SIDE}
    depth = kwargs["depth"]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Latte(**kwargs).parameters())
    x, t = torch.randn(1, FRAMES, 4, SIDE, SIDE, device=device()).bfloat16(), torch.zeros(1, device=device())

    def count(build: Callable[..., nn.Module], **more: Any) -> int:
        two, four = (
            kept_bytes(build(**kwargs | {"depth": d}, **more).to(device(), torch.bfloat16), x, t) for d in (2, 4)
        )
        return two + (four - two) // 2 * (depth - 2)

    def keep(contender: str, kept: int) -> None:
        note = largest(parameters, kept, depth)
        record(f"{name}, bfloat16, one clip", contender, kept_bytes=kept, note=note)

    keep("oracle eager (upstream's code path)", count(reference.latte.Latte))
    for policy in POLICIES:
        keep("ours" if policy == "none" else f"ours, recompute = {policy}", count(Latte, recompute=policy))
    benchmark.pedantic(lambda: None, rounds=1)
