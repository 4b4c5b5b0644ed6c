"""Training data: data sets of clips, latents and captions, their encoding to disk, and the order of samples."""

from latte_fast.data import shapes
from latte_fast.data.config import DataConfig
from latte_fast.data.open import open_dataset
from latte_fast.data.sampler import GlobalSampler

__all__ = ["DataConfig", "GlobalSampler", "open_dataset", "shapes"]
