"""latte_fast: fast training and sampling of Latte, the latent diffusion transformer for video."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latte_fast import ops as ops
    from latte_fast import reference as reference
    from latte_fast.backends import use_backend as use_backend
    from latte_fast.cost_model import cost as cost
    from latte_fast.cuda_graphs.replay import Replay as Replay
    from latte_fast.integrations.patch import patch as patch
    from latte_fast.integrations.patch import unpatch as unpatch
    from latte_fast.integrations.step_cache import StepCache as StepCache
    from latte_fast.models.flexdit.model import FlexLatte as FlexLatte
    from latte_fast.models.latte.model import Latte as Latte
    from latte_fast.models.latte.model import Latte_models as Latte_models
    from latte_fast.models.latte.model import LatteIMG as LatteIMG
    from latte_fast.models.latte.model import LatteIMG_models as LatteIMG_models
    from latte_fast.models.latte_t2v.model import LatteT2V as LatteT2V
    from latte_fast.models.tats.transformer import TokenTransformer as TokenTransformer
    from latte_fast.models.tats.vqgan import VQGAN as VQGAN
    from latte_fast.quantization.convert import quantize as quantize
    from latte_fast.quantization.convert import unquantize as unquantize
    from latte_fast.runs.load import load as load
    from latte_fast.sampling.sample import sample as sample

__version__ = "0.1.0"

# public name -> the module that holds it; imported on first use, so that `latte-fast --help` needs no torch
_HOMES = {
    "FlexLatte": "latte_fast.models.flexdit.model",
    "Latte": "latte_fast.models.latte.model",
    "LatteIMG": "latte_fast.models.latte.model",
    "LatteIMG_models": "latte_fast.models.latte.model",
    "LatteT2V": "latte_fast.models.latte_t2v.model",
    "Latte_models": "latte_fast.models.latte.model",
    "TokenTransformer": "latte_fast.models.tats.transformer",
    "VQGAN": "latte_fast.models.tats.vqgan",
    "Replay": "latte_fast.cuda_graphs.replay",
    "StepCache": "latte_fast.integrations.step_cache",
    "cost": "latte_fast.cost_model",
    "load": "latte_fast.runs.load",
    "patch": "latte_fast.integrations.patch",
    "quantize": "latte_fast.quantization.convert",
    "sample": "latte_fast.sampling.sample",
    "unpatch": "latte_fast.integrations.patch",
    "unquantize": "latte_fast.quantization.convert",
    "use_backend": "latte_fast.backends",
}
_ROOMS = ("ops", "reference")

__all__ = [*sorted(_HOMES), *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"latte_fast.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'latte_fast' has no attribute {name!r}")
    if name == "use_backend":
        # the ops declare the backends that are chosen from
        importlib.import_module("latte_fast.ops")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
