"""Random numbers by (seed, sample number): the same for any number of ranks, any batch and any resume.

Philox is keyed by the pair, so nothing has to be stored or advanced; torch's CPU generator keeps 32 bits of its seed.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

# how many there are: a key's half has 64 bits
SEEDS = 1 << 64


class Use(IntEnum):
    """What numbers are drawn for; each use is a stream of its own."""

    NOISE = 0  # a training sample's noise
    TIME = 1  # its step and its dropped labels
    LATENT = 2  # the VAE's posterior
    START = 3  # a generated sample's first x
    STEP = 4  # the noise of each of its steps
    LABEL = 5  # its class, where none is asked for


def generator(seed: int, number: int, use: Use = Use.NOISE, step: int = 0) -> np.random.Generator:
    key = np.array([seed, number], dtype=np.uint64)
    counter = np.array([0, 0, step, int(use)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, number: int, shape: Sequence[int], use: Use = Use.NOISE, step: int = 0) -> Tensor:
    """N(0, 1) in fp32, on the CPU."""
    drawn = generator(seed, number, use, step).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(drawn)


class StepNoise:
    """Called with x (B, ...), the next step's noise of each sample `numbers` (B,), like x."""

    def __init__(self, seed: int, numbers: Sequence[int]):
        self.seed, self.numbers, self.step = seed, list(numbers), 0

    def __call__(self, x: Tensor) -> Tensor:
        if len(self.numbers) != x.shape[0]:
            raise ValueError(f"StepNoise: x must hold {len(self.numbers)} samples, got {x.shape[0]}")
        rows = [normal(self.seed, number, x.shape[1:], Use.STEP, self.step) for number in self.numbers]
        self.step += 1
        drawn = torch.stack(rows)
        if x.device.type == "cuda":
            # from pinned memory the copy does not hold up the host
            return drawn.pin_memory().to(x.device, x.dtype, non_blocking=True)
        return drawn.to(x.device, x.dtype)
