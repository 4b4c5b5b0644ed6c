"""What a dataset gives for one sample."""

from typing import TypedDict

from torch import Tensor


class Item(TypedDict, total=False):
    """One clip with what is known of it; a batch has the same names, its tensors stacked."""

    video: Tensor  # (F + n, 3, H, W) float32 in [-1, 1], the last n single images; or
    latent: Tensor  # (F + n, C, h, w) float32, scaled
    label: Tensor  # () int64, a class's number or a caption's
    image_labels: Tensor  # (n,) int64, of the single images
