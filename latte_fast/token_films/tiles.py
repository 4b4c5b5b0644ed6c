"""Windows that cover a latent frame larger than the transformer sees: where they lie, and what each finds drawn."""

from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """A window of a latent frame.

    Args:
        places: places in the frame, row by row (side * side,) int64.
        drawn: whether an earlier window has drawn the place.
    """

    places: Tensor
    drawn: Tensor


def starts(whole: int, side: int, overlap: int) -> list[int]:
    """Returns where windows begin along an axis: they share `overlap` codes, and the last, at the edge, more."""
    return [*range(0, whole - side, side - overlap), whole - side]


def tiles(whole: int, side: int, overlap: int) -> list[Tile]:
    """Returns the windows of side x side codes that cover a frame of whole x whole, row by row.

    Args:
        whole: height and width of the frame in codes.
        side: height and width of a window.
        overlap: codes that neighbours share; 0 is half of the window.
    """
    overlap = overlap or side // 2
    if not 0 <= overlap < side:
        raise ValueError(f"sample: tokens.overlap must be below the window's {side} codes, got {overlap}")
    seen = torch.zeros(whole, whole, dtype=torch.bool)
    numbers = torch.arange(whole * whole).view(whole, whole)
    found = []
    for y in starts(whole, side, overlap):
        for x in starts(whole, side, overlap):
            part = (slice(y, y + side), slice(x, x + side))
            found.append(Tile(numbers[part].flatten(), seen[part].flatten().clone()))
            seen[part] = True
    return found


def to_draw(tile: Tile, frames: int) -> tuple[int, int]:
    """Returns from which token of new frames to which, exclusive, a window is drawn."""
    lacking = (~tile.drawn.repeat(frames)).nonzero()
    return int(lacking[0]), int(lacking[-1]) + 1
