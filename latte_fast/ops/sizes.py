"""A model's sizes, from which each op makes the arguments that it meets there."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Clips of `frames` x `patches` tokens as a model sees them, and captions of `words` tokens."""

    clips: int
    frames: int
    patches: int
    width: int
    heads: int
    device: torch.device
    dtype: torch.dtype
    words: int = 120

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def tokens(self, widths: int = 1) -> Tensor:
        return self.randn(self.clips, self.frames, self.patches, widths * self.width)

    def conditions(self, *names: str) -> dict[str, Tensor]:
        """(clips, width) each, views of one tensor as the adaLN layer leaves them."""
        return dict(zip(names, self.randn(self.clips, 6 * self.width).chunk(6, dim=-1), strict=False))

    def per_head(self, *shape: int) -> Tensor:
        return self.randn(*shape, self.heads, self.width // self.heads)

    def qkv(self) -> Tensor:
        return self.per_head(self.clips, self.frames, self.patches, 3)
