"""What whole models run, as exact numbers: a change that adds a launch, a product, a copy or a byte fails here.

A model of two pairs of blocks less one of one pair is what a pair costs; the rest is what the ends cost.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import Latte, LatteT2V, testing
from latte_fast.diffusion import create_diffusion, guided
from tests.counting import Count, require_kernels

WIDTH, HEADS, CLIPS, FRAMES, PATCHES = 64, 2, 2, 3, 16
ACTIVATION = CLIPS * FRAMES * PATCHES * WIDTH  # elements
CHANNELS = 40


def latte(pairs: int) -> tuple[Callable[..., Tensor], tuple, torch.nn.Module]:
    torch.manual_seed(0)
    model = testing.refill(
        Latte(input_size=8, hidden_size=WIDTH, depth=2 * pairs, num_heads=HEADS, num_frames=FRAMES, num_classes=3, extras=2)
    )
    x, t, y = torch.randn(CLIPS, FRAMES, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 3])
    return model.eval(), (x, t, y), model


def t2v(pairs: int) -> tuple[Callable[..., Tensor], tuple, torch.nn.Module]:
    torch.manual_seed(0)
    model = LatteT2V(num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, cross_attention_dim=WIDTH,
                     num_layers=pairs, sample_size=8, caption_channels=CHANNELS, video_length=FRAMES)  # fmt: skip
    args = (torch.randn(CLIPS, 4, FRAMES, 8, 8), torch.tensor([3, 900]), torch.randn(CLIPS, 7, CHANNELS))
    return lambda *a: model(*a).sample, args, model.eval()


def forward(build: Callable[[int], tuple], pairs: int) -> Count:
    """The second of two forwards of the same prompt: a step of sampling."""
    run, args, _ = build(pairs)
    with torch.no_grad():
        run(*args)
        with Count() as count:
            run(*args)
    return count


def step(build: Callable[[int], tuple], pairs: int) -> Count:
    """A training step: forward, backward, AdamW."""
    run, args, model = build(pairs)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    dout = torch.randn_like(run(*args))
    with Count() as count:
        run(*args).backward(dout)
        optimizer.step()
    return count


def per_pair(measure: Callable[..., Count], build: Callable[[int], tuple]) -> tuple[Counter, Counter, list[int], float]:
    """(ops a pair of blocks runs, ops the ends run, copies as large as an activation, activations made by a pair)."""
    one, two = measure(build, 1), measure(build, 2)
    pair = Counter(two.ran)
    pair.subtract(one.ran)
    ends = Counter(one.ran)
    ends.subtract(pair)
    large = [size for size in two.copies if size >= ACTIVATION]
    return +pair, +ends, large, (two.bytes - one.bytes) / (4 * ACTIVATION)
