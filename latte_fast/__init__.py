"""latte_fast: the fast backbone for Latte, the latent diffusion transformer for video."""

from latte_fast import ops, reference
from latte_fast.backends import use_backend
from latte_fast.cost import cost
from latte_fast.models.latte import Latte, Latte_models, LatteIMG, LatteIMG_models
from latte_fast.models.latte_t2v import LatteT2V
from latte_fast.models.patch import patch, unpatch
from latte_fast.modules.replay import Replay

__version__ = "0.1.0"

__all__ = [
    "Latte",
    "LatteIMG",
    "LatteIMG_models",
    "LatteT2V",
    "Latte_models",
    "Replay",
    "cost",
    "ops",
    "patch",
    "reference",
    "unpatch",
    "use_backend",
]
