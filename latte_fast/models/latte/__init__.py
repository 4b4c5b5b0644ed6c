"""Latte and LatteIMG in the paper's whole design space: model, adapter, initialisation, and reading published files."""

from latte_fast.models.latte.model import Latte, Latte_models, LatteIMG, LatteIMG_models

__all__ = ["Latte", "LatteIMG", "LatteIMG_models", "Latte_models"]
