"""What is drawn at random for an item: a function of (seed, epoch, index) and of nothing that happened before."""

import logging
from typing import NamedTuple

import numpy as np

log = logging.getLogger("latte_fast.data")


class SampleKey(NamedTuple):
    """One sample of a run: an item of the data in an epoch, and the sample's number in the whole run."""

    epoch: int
    item: int
    number: int


Key = int | tuple[int, int] | SampleKey


def split_key(key: Key, length: int) -> tuple[int, int]:
    """(epoch, index) of a dataset's key; a plain int is epoch 0. IndexError beyond the end, so that `for` stops."""
    epoch, index = key[:2] if isinstance(key, tuple) else (0, key)
    if not 0 <= index < length or epoch < 0:
        raise IndexError(f"dataset: key must be (epoch >= 0, 0 <= index < {length}), got {key}")
    return int(epoch), int(index)


def generator(*numbers: int) -> np.random.Generator:
    """Random numbers that depend on these numbers and nothing else."""
    return np.random.default_rng(numbers)


def long_enough(lengths: list[int], span: int, short: str, kind: str) -> list[int]:
    """Which videos have a clip's `span` frames, or all of them where short ones start over; the rest are counted."""
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
    """A clip's frames at exactly this interval from a start drawn among all that fit; a short video starts over."""
    span = (frames - 1) * interval + 1
    start = int(rng.integers(length - span + 1 if length >= span else length))
    return [(start + i * interval) % length for i in range(frames)]
