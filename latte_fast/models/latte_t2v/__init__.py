"""LatteT2V: text to video with the constructor, call, keys and numbers of diffusers and of upstream."""

from latte_fast.models.latte_t2v.model import LatteT2V

__all__ = ["LatteT2V"]
