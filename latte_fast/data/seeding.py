"""Random draws for an item: a function of (seed, epoch, index), and of nothing that was drawn before."""

import logging
from typing import NamedTuple

import numpy as np

log = logging.getLogger("latte_fast.data")


class SampleKey(NamedTuple):
    """One sample of a run: its item in an epoch of the data, and its number in the whole run."""

    epoch: int
    item: int
    number: int


Key = int | tuple[int, int] | SampleKey


def split_key(key: Key, length: int) -> tuple[int, int]:
    """Splits a key into (epoch, index); an int is of epoch 0. Raises IndexError beyond the end, so that `for` stops."""
    epoch, index = key[:2] if isinstance(key, tuple) else (0, key)
    if not 0 <= index < length or epoch < 0:
        raise IndexError(f"dataset: key must be (epoch >= 0, 0 <= index < {length}), got {key}")
    return int(epoch), int(index)


def generator(*numbers: int) -> np.random.Generator:
    """Returns a random generator that depends on these numbers and nothing else."""
    return np.random.default_rng(numbers)


def long_enough(lengths: list[int], span: int, short: str, kind: str) -> list[int]:
    """Returns indices of videos with at least `span` frames, or of all if short ones loop; logs how many it omits."""
    kept = [i for i, length in enumerate(lengths) if length >= span or short == "loop"]
    if not kept:
        raise ValueError(
            f"{kind}: videos must have at least {span} frames (a clip at this interval) or short be loop, "
            f"got {max(lengths)} in the longest of {len(lengths)}"
        )
    if len(kept) < len(lengths):
        left = len(lengths) - len(kept)
        log.warning("%s: %d of %d videos have fewer than %d frames and are left out", kind, left, len(lengths), span)
    return kept


def draw_places(rng: np.random.Generator, length: int, frames: int, interval: int) -> list[int]:
    """Draws a clip's frames, exactly `interval` apart from any start that fits; a short video starts over."""
    span = (frames - 1) * interval + 1
    start = int(rng.integers(length - span + 1 if length >= span else length))
    return [(start + i * interval) % length for i in range(frames)]
