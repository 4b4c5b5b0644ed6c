"""Requirements of a backend whatever the op: the device, the package, the extension."""

import importlib.util
import os
from collections.abc import Callable

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


def why_not_gradient(*tensors: object) -> str | None:
    """Why an op without a backward does not serve these tensors, or None where no gradient is asked for."""
    asked = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
    return "it has no gradient, and one is asked for" if asked else None


# rows that share one reading of the weights; more are a matrix product
FEW_ROWS = 8


def why_not_few_rows(x: Tensor, *others: object) -> str | None:
    if len(x) > FEW_ROWS:
        return f"the kernel serves up to {FEW_ROWS} rows, got {len(x)}"
    return why_not_gradient(x, *others)


WHY_NOT: dict[str, Callable[[Tensor], str | None]] = {
    "triton": why_not_triton,
    "cpu": why_not_cpu,
    "cuda": why_not_cuda,
}
