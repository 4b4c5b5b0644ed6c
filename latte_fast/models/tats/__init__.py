"""TATS: the time-agnostic 3D-VQGAN, its codebook, discriminators and files."""

from latte_fast.models.tats.vqgan import VQGAN

__all__ = ["VQGAN"]
