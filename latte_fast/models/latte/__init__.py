"""Latte and LatteIMG: classes, text embeddings or no condition, in the paper's whole design space."""

from latte_fast.models.latte.model import Latte, Latte_models, LatteIMG, LatteIMG_models

__all__ = ["Latte", "LatteIMG", "LatteIMG_models", "Latte_models"]
