"""LatteT2V, the text-to-video model of upstream and diffusers: model, adapter, initialisation, and folders on disk."""

from latte_fast.models.latte_t2v.model import LatteT2V

__all__ = ["LatteT2V"]
