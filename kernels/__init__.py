"""Triton kernels, imported as latte_fast.kernels. As the top-level package `kernels` this stays inert."""

__version__ = "0.0.0"


def __getattr__(name: str):
    raise AttributeError(f"kernels.{name}: this folder is the subpackage latte_fast.kernels; import it under that name")
