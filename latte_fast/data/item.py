"""The item that a data set returns for one sample."""

from typing import TypedDict

from torch import Tensor


class Item(TypedDict, total=False):
    """One clip with its labels; a batch has the same names and stacked tensors."""

    video: Tensor  # (F + n, 3, H, W) float32 in [-1, 1], the last n single images, or (F, 1, H, W) of sound; or
    latent: Tensor  # (F + n, C, h, w) float32, scaled; or
    tokens: Tensor  # (t, h, w) int64, of a 3D-VQGAN
    label: Tensor  # () int64, the number of a class or caption
    words: Tensor  # (n,) int64, the tokens of a caption or a sound
    image_labels: Tensor  # (n,) int64, labels of the single images


class DataError(RuntimeError):
    """Raised for stored data that can't be used; the message names the file and the clip."""
