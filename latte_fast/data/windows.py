"""Clips whose model sees a window of each frame, drawn anew in each epoch."""

from typing import Any

import torch
from torch.utils.data import Dataset

from latte_fast.data.item import Item
from latte_fast.data.seeding import Key, generator, split_key

# the stream of random numbers beside those that draw a clip
STREAM = 1 << 16


class WindowedClips(Dataset):
    """Clips with the corner (y, x) of a window, by (seed, epoch, index).

    Args:
        dataset: clips of tokens, or of pixels that a VQGAN makes tokens of.
        seed: seed of the data.
        whole: height and width of a latent frame in codes.
        side: height and width of the window in codes.
    """

    def __init__(self, dataset: Any, seed: int, whole: int, side: int):
        self.dataset, self.seed, self.corners = dataset, seed, whole - side + 1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = split_key(key, len(self))
        corner = generator(self.seed, epoch, index, STREAM).integers(self.corners, size=2)
        return self.dataset[key] | {"corner": torch.from_numpy(corner)}
