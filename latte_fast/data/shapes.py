"""Moving coloured shapes: a labelled data set without files; a class is a shape and a direction."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from latte_fast.data.item import Item
from latte_fast.data.seeding import Key, generator, split_key
from latte_fast.media.pixels import normalise

if TYPE_CHECKING:
    from latte_fast.data.text import Texts

SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
CLASSES = tuple(f"{shape} {direction}" for shape in SHAPES for direction in DIRECTIONS)
# pixels that are drawn at once
AT_ONCE = 1 << 13
# where the number of colours is given, the background and the weakest part of a colour have this brightness
DIM = 0.1


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Returns the signed distance in pixels to the outline, negative inside; all have about the circle's area."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.89 * radius
    # equilateral, pointing up (y points down), moved so that its bounding box is centred
    y = y - 0.39 * radius
    return np.maximum(0.866 * abs(x) - 0.5 * y, y) - 0.78 * radius


def hue(number: int, colours: int) -> np.ndarray:
    """Returns a bright colour, (3,) in [0, 1], of `colours` that are evenly spaced on the circle of hues."""
    red_green_blue = np.array([0, 2, 4])  # places on a circle of 6
    distance = abs((number / colours * 6 - red_green_blue + 3) % 6 - 3)
    return np.clip(2 - distance, 0, 1) * (1 - DIM) + DIM


def clip(label: int, seed: int, frames: int, size: int, endless: bool = False, colours: int = 0) -> Tensor:
    """Draws uint8 (F, 3, size, size): an antialiased shape moves straight over a dark background and stays inside.

    Colour, size and start are a function of (label, seed); the path is 35 to 45 % of the side for any number of frames.
    An endless one moves 10 to 14 % of the side a frame, leaves on one side and comes back on the other. `colours`
    is the number of hues that shapes have, on one background; 0 lets both be any.
    """
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"shapes: label must be in 0 .. {len(CLASSES) - 1}, got {label}")
    if frames < 1 or size < 8:
        raise ValueError(f"shapes: frames must be at least 1 and size at least 8, got {frames} and {size}")
    rng = generator(label, seed)
    shape, direction = CLASSES[label].split()
    radius = rng.uniform(0.12, 0.18) * size
    # the triangle's base reaches 1.35 radii to each side, its blurred corners a pixel more
    room = size / 2 - 1.4 * radius - 0.5
    way = min(rng.uniform(0.35, 0.45) * size, 2 * room)
    colour = rng.uniform(0.1, 1.0, 3)
    colour[rng.integers(3)] = 1.0
    ground = rng.uniform(0.0, 0.2, 3)
    ahead = rng.uniform(-(room - way / 2), room - way / 2)
    beside = rng.uniform(-room, room)
    dx, dy = DIRECTIONS[direction]
    places: np.ndarray = ahead + way * (np.linspace(0, 1, frames) - 0.5)
    if endless:
        beside = rng.uniform(-size / 2, size / 2)
        places = rng.uniform(-size / 2, size / 2) + rng.uniform(0.10, 0.14) * size * np.arange(frames)
    if colours:
        colour, ground = hue(int(rng.integers(colours)), colours), np.full(3, DIM)
    grid = np.arange(size) + 0.5 - size / 2
    out = np.empty((frames, 3, size, size), np.uint8)
    cx, cy = dx * places + abs(dy) * beside, dy * places + abs(dx) * beside
    # some frames at a time: at 24 pixels the calls of one frame cost more than their arithmetic
    some = max(1, AT_ONCE // size**2)
    for i in range(0, frames, some):
        now = slice(i, i + some)
        x, y = grid[None, None, :] - cx[now, None, None], grid[None, :, None] - cy[now, None, None]
        if endless:
            x, y = ((z + size / 2) % size - size / 2 for z in (x, y))
        inside = np.clip(0.5 - _distance(shape, x, y, radius), 0, 1)[:, None]  # (n, 1, size, size)
        out[now] = np.round(255 * (ground[:, None, None] + inside * (colour - ground)[:, None, None]))
    return torch.from_numpy(out)


class Shapes(Dataset):
    """Clips of moving shapes, drawn when read and new in each epoch; item i has class i % (number of classes).

    Args:
        length: number of clips in an epoch.
        frames: number of frames in a clip.
        size: height and width in pixels.
        seed: seed of everything random.
        images: number of single frames after each clip.
        outlines: those of SHAPES that occur.
        texts: captions of the classes, whose numbers are then the labels.
        endless: whether shapes that leave on one side come back on the other.
        colours: number of hues that shapes have, on one dark background; 0 lets shape and background have any colour.
    """

    def __init__(
        self,
        length: int,
        frames: int,
        size: int,
        seed: int = 0,
        images: int = 0,
        outlines: Sequence[str] = SHAPES,
        texts: "Texts | None" = None,
        endless: bool = False,
        colours: int = 0,
    ) -> None:
        # numbers among all CLASSES, so that a class's clips do not depend on which others are left out
        self.numbers = [i for i, name in enumerate(CLASSES) if name.split()[0] in outlines]
        self.classes = [CLASSES[i] for i in self.numbers]
        self.length, self.frames, self.size, self.seed, self.images = length, frames, size, seed, images
        self.texts, self.endless, self.colours = texts, endless, colours
        self.labels = texts.numbers(self.classes) if texts else list(range(len(self.classes)))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Key) -> Item:
        epoch, index = split_key(key, self.length)
        rng = generator(self.seed, epoch, index)
        label = index % len(self.numbers)
        how = (self.frames, self.size, self.endless, self.colours)
        parts = [clip(self.numbers[label], int(rng.integers(2**31)), *how)]
        image_labels = rng.integers(len(self.numbers), size=self.images)
        for image_label in image_labels:
            seed, frame = int(rng.integers(2**31)), int(rng.integers(self.frames))
            still = clip(self.numbers[image_label], seed, *how)
            parts.append(still[frame : frame + 1])
        item: Item = {"video": normalise(torch.cat(parts)), "label": torch.tensor(self.labels[label])}
        if self.images:
            item["image_labels"] = torch.tensor([self.labels[i] for i in image_labels])
        return item


def write_shapes(
    folder: str | os.PathLike, per_class: int, frames: int, size: int, seed: int = 0, fps: int = 8
) -> None:
    """Writes folder/<class>/<number>.mp4, the layout of kind "videos"; the same arguments give the same files."""
    from latte_fast.media.write import write_mp4

    if per_class < 1:
        raise ValueError(f"write_shapes: per_class must be at least 1, got {per_class}")
    jobs = [(label, number) for label in range(len(CLASSES)) for number in range(per_class)]
    for label, number in tqdm(jobs, desc="shapes", unit="clip", leave=False, disable=None):
        video = clip(label, seed * per_class + number, frames, size).permute(0, 2, 3, 1)
        write_mp4(Path(folder) / CLASSES[label] / f"{number:04d}.mp4", video, fps)
