"""What a kernel needs before its arguments matter: the device, the package, the extension."""

import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from latte_fast import _ext

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETER = "TRITON_INTERPRET"


def why_not_triton(x: Tensor) -> str | None:
    if x.device.type == "cpu":
        if os.environ.get(_INTERPRETER) != "1":
            return "Triton needs a CUDA tensor (or TRITON_INTERPRET=1 set before the first import, for tests)"
    elif x.device.type != "cuda":
        return f"Triton needs a CUDA tensor, got one on {x.device.type}"
    return None if _HAS_TRITON else "triton is not installed; run `pip install triton`"


def why_not_cpu(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"the C++ kernels need a CPU tensor, got one on {x.device.type}"
    return _ext.why_not_built()


def kernel_probes(launchers: Callable[[str], ModuleType]) -> dict[str, Callable[..., str | None]]:
    """The probes of an op whose kernels are launchers("cpu") and launchers("triton"): the platform, then the arguments."""

    def probe(backend: str, platform: Callable[[Tensor], str | None]) -> Callable[..., str | None]:
        def why_not(x: Tensor, *args: Any) -> str | None:
            reason = platform(x)
            if reason:
                return reason
            try:
                module = launchers(backend)
            except ImportError as error:
                return str(error)
            return module.why_not(x, *args)

        return why_not

    return {"cpu": probe("cpu", why_not_cpu), "triton": probe("triton", why_not_triton)}
