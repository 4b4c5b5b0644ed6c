"""The oracle: plain torch, upstream's maths to the letter, beside nothing fast."""

from latte_fast.reference import functional, latte, latte_t2v

__all__ = ["functional", "latte", "latte_t2v"]
