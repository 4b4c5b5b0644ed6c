"""The oracle: every op and both models in plain torch, upstream's maths to the letter, nothing made fast."""

from latte_fast.reference import functional, latte, latte_t2v

__all__ = ["functional", "latte", "latte_t2v"]
