"""latte_fast: the fast backbone for Latte."""

__version__ = "0.1.0"
