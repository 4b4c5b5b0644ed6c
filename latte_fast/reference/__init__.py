"""The oracle: every op and all models in plain torch, upstream's maths to the letter, nothing made fast."""

from latte_fast.reference import (
    flex_latte,
    flex_t2v,
    functional,
    latte,
    latte_t2v,
    sparse_dit,
    token_transformer,
    vqgan,
)

__all__ = ["flex_latte", "flex_t2v", "functional", "latte", "latte_t2v", "sparse_dit", "token_transformer", "vqgan"]
