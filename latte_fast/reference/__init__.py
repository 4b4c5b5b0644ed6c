"""The oracle: every op and the models in plain torch, upstream's maths to the letter, nothing made fast."""

from latte_fast.reference import functional, latte, latte_t2v, vqgan

__all__ = ["functional", "latte", "latte_t2v", "vqgan"]
