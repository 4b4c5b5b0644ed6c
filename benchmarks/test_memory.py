"""What a training forward keeps for its backward, counted on tensors without data: any model on any machine.

From it the largest batch on 80 and 141 GB: weights and gradients in bf16, AdamW's two moments, the master weights and
their average in fp32; half a block's activations on top are live in the backward.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.bytes import kept_bytes
from benchmarks.contenders import FRAMES, PRESETS, SIDE
from latte_fast import Latte, reference
from latte_fast.modules.recompute import POLICIES

CARDS = {"80 GB": 80e9, "141 GB": 141e9}
STATE = 2 + 2 + 4 * 4  # bytes a parameter


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def largest(parameters: int, kept: int, depth: int) -> str:
    each = kept + kept / depth
    fits = [f"{int((size - STATE * parameters) / each)} on {name}" for name, size in CARDS.items()]
    return "largest batch " + ", ".join(fits)


@pytest.mark.parametrize("name", [pytest.param("Latte-B/2", marks=pytest.mark.quick), "Latte-XL/2"])
def test_kept_for_backward(name: str, record: Any, benchmark: Any) -> None:
    with FakeTensorMode(), default_dtype(torch.bfloat16):
        x = torch.randn(1, FRAMES, 4, SIDE, SIDE)
        t = torch.zeros(1, dtype=torch.int64)
        kwargs = PRESETS[name] | {"num_frames": FRAMES, "input_size": SIDE}
        oracle = reference.latte.Latte(**kwargs)
        count = sum(p.numel() for p in oracle.parameters())
        depth = len(oracle.blocks)
        title = f"{name}, bfloat16, one clip"
        kept = kept_bytes(oracle, x, t)
        record(title, "oracle eager (upstream's code path)", kept_bytes=kept, note=largest(count, kept, depth))
        ours = Latte(**kwargs)
        for policy in POLICIES:
            ours.recompute = policy
            kept = kept_bytes(ours, x, t)
            contender = "ours" if policy == "none" else f"ours, recompute = {policy}"
            record(title, contender, kept_bytes=kept, note=largest(count, kept, depth))
        benchmark.pedantic(lambda: ours(x, t), rounds=1)
