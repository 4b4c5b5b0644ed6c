"""Random numbers by (seed, sample number): the same for any number of ranks, any batch size and after any resume.

Philox is keyed by the pair, so nothing has to be stored or advanced; torch's CPU generator keeps 32 bits of its seed.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

# number of seeds: each half of a Philox key has 64 bits
SEEDS = 1 << 64


class Use(IntEnum):
    """What random numbers are for; each use has a stream of its own."""

    NOISE = 0  # a training sample's noise
    TIME = 1  # a training sample's time step and dropped labels
    LATENT = 2  # the VAE's posterior
    START = 3  # a generated sample's initial noise
    STEP = 4  # the noise of each sampling step
    LABEL = 5  # a generated sample's class, where none is asked for
    FRAME = 6  # the frame of a training clip that a discriminator of pictures sees
    CODES = 7  # the latents that codes start from, by step
    DENSITY = 8  # the interval of time steps that an update trains
    TOKEN = 9  # the tokens of a generated film, by latent frame
    FRAME_TIME = 10  # the time steps of a training sample's frames, where each has its own
    MISTAKE = 11  # the random codes that a training sample has in place of some of its own


def generator(seed: int, number: int, use: Use = Use.NOISE, step: int = 0) -> np.random.Generator:
    key = np.array([seed, number], dtype=np.uint64)
    counter = np.array([0, 0, step, int(use)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, number: int, shape: Sequence[int], use: Use = Use.NOISE, step: int = 0) -> Tensor:
    """Draws N(0, 1) in fp32 on the CPU."""
    drawn = generator(seed, number, use, step).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(drawn)


def mistakes(
    seed: int, number: int, shape: Sequence[int], codes: int, most: float, ends: bool = False
) -> tuple[Tensor, int]:
    """Draws codes that take the place of a training sample's own (frames, ...) int64, and how many frames have them.

    -1 stands where a code stays. Half of the samples stay as they are; of the others a number of first frames have
    mistakes, or with `ends` the first frame and the last. Their share is drawn for the sample between 0 and `most`.
    """
    source = generator(seed, number, Use.MISTAKE)
    frames, share = int(source.integers(1, shape[0])), most * source.random()
    frames = frames if source.random() < 0.5 else 0
    replaced = source.random(tuple(shape)) < share
    drawn = torch.from_numpy(np.where(replaced, source.integers(codes, size=tuple(shape)), -1))
    drawn[slice(1, -1) if ends and frames else slice(frames, None)] = -1
    return drawn, frames


class StepNoise:
    """Draws the noise of each sampling step by sample number: called with x (B, ...), returns the next step's noise.

    Args:
        seed: seed of all noise.
        numbers: numbers of the samples.
        step: number of the first step.
    """

    def __init__(self, seed: int, numbers: Sequence[int], step: int = 0):
        self.seed, self.numbers, self.step = seed, list(numbers), step

    def __call__(self, x: Tensor) -> Tensor:
        if len(self.numbers) != x.shape[0]:
            raise ValueError(f"StepNoise: x must hold {len(self.numbers)} samples, got {x.shape[0]}")
        rows = [normal(self.seed, number, x.shape[1:], Use.STEP, self.step) for number in self.numbers]
        self.step += 1
        drawn = torch.stack(rows)
        if x.device.type == "cuda":
            # a copy from pinned memory does not block the host
            return drawn.pin_memory().to(x.device, x.dtype, non_blocking=True)
        return drawn.to(x.device, x.dtype)


class FrameNoise:
    """Draws noise (B, n, ...) of a film's next frames: all of them, one after the other, are the noise of a clip.

    Args:
        seed: seed of all noise.
        numbers: numbers of the samples.
        shape: shape of a frame.
        use: what the noise is for.
        step: number of the step, or 0.
        skip: number of frames that were drawn before.
    """

    def __init__(self, seed: int, numbers: Sequence[int], shape: Sequence[int], use: Use, step: int = 0, skip: int = 0):
        self.shape = tuple(shape)
        self.sources = [generator(seed, number, use, step) for number in numbers]
        for _ in range(skip):
            self.next(1)

    def next(self, frames: int) -> Tensor:
        rows = [source.standard_normal((frames, *self.shape), dtype=np.float32) for source in self.sources]
        return torch.from_numpy(np.stack(rows))
