"""What latte_fast adds to an installed diffusers: its Latte on the fused blocks, and a pipeline for classes."""

try:
    import diffusers as _theirs
except ImportError as error:
    raise ImportError("latte_fast.integrations.diffusers needs diffusers: pip install 'latte_fast[t2v]'") from error

from latte_fast.integrations.class_pipeline import ClassTransformer, LatteClassPipeline, save_pipeline
from latte_fast.integrations.transformer_3d import LatteTransformer3DModel

VERSION: str = _theirs.__version__

__all__ = ["VERSION", "ClassTransformer", "LatteClassPipeline", "LatteTransformer3DModel", "save_pipeline"]
