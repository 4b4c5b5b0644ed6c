"""What a kernel needs before its arguments matter: the device, the package, the extension."""

import contextlib
import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
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


@torch.compiler.assume_constant_result
def _major(device: int) -> int:
    return torch.cuda.get_device_capability(device)[0]


def why_not_cuda(x: Tensor) -> str | None:
    if x.device.type != "cuda":
        return f"the CUDA kernels need a CUDA tensor, got one on {x.device.type}"
    reason = _ext.why_no_cuda()
    if reason is None and _major(x.device.index) < 8:
        reason = f"the CUDA kernels need compute capability 8.0 or later, got {_major(x.device.index)}.x"
    return reason


def kernel_probes(launchers: Callable[[str], ModuleType]) -> dict[str, Callable[..., str | None]]:
    """Probes of an op whose kernels are launchers("cpu") and launchers("triton"): the platform, then the arguments."""
    cpu_module = None
    with contextlib.suppress(ImportError):
        cpu_module = launchers("cpu")

    def why_not_on_cpu(x: Tensor, *args: Any) -> str | None:
        if cpu_module is None:
            return "it has no C++ kernel"
        return why_not_cpu(x) or cpu_module.why_not(x, *args)

    def why_not_on_triton(x: Tensor, *args: Any) -> str | None:
        return why_not_triton(x) or launchers("triton").why_not(x, *args)

    return {"cpu": why_not_on_cpu, "triton": why_not_on_triton}
