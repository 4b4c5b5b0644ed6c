"""Requirements of a backend whatever the op: the device, the package, the extension."""

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from latte_fast import _ext
from latte_fast.tracing import constant_in_graphs

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


@constant_in_graphs
def _major(device: int) -> int:
    return torch.cuda.get_device_capability(device)[0]


def why_not_cuda(x: Tensor) -> str | None:
    if x.device.type != "cuda":
        return f"the CUDA kernels need a CUDA tensor, got one on {x.device.type}"
    reason = _ext.why_no_cuda()
    if reason is None and _major(x.device.index) < 8:
        reason = f"the CUDA kernels need compute capability 8.0 or later, got {_major(x.device.index)}.x"
    return reason


WHY_NOT: dict[str, Callable[[Tensor], str | None]] = {
    "triton": why_not_triton,
    "cpu": why_not_cpu,
    "cuda": why_not_cuda,
}
