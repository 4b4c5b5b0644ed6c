"""TATS: the time-agnostic 3D-VQGAN with its codebook, discriminators and files, and the transformer over its tokens."""

from latte_fast.models.tats.transformer import TokenTransformer
from latte_fast.models.tats.vqgan import VQGAN

__all__ = ["VQGAN", "TokenTransformer"]
