"""conv_transpose3d at a 3D-VQGAN decoder's shapes and where kernel == stride, against torch's own operator."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.contenders import compiled, device, no_grad
from latte_fast import ops, testing

DECODER = [(256, 256, (4, 16, 16)), (256, 128, (8, 32, 32)), (128, 64, (16, 64, 64))]
CASES = [(*shape, (4, 4, 4), stride, 1) for shape in DECODER for stride in ((2, 2, 2), (1, 2, 2))]
CASES += [(8, 8, (8, 32, 32), stride, stride, 0) for stride in ((2, 1, 1), (4, 1, 1))]
CASES += [(256, 128, (8, 32, 32), (2, 2, 2), (2, 2, 2), 0), (128, 64, (8, 64, 64), (1, 2, 2), (1, 2, 2), 0)]


def tensors(case: tuple, grad: bool = False) -> tuple[list[torch.Tensor], tuple]:
    depth, cols, size, kernel, stride, padding = case
    shapes = ((1, depth, *size), (depth, cols, *kernel), (cols,))
    torch.manual_seed(0)
    return [torch.randn(s, device=device()).bfloat16().requires_grad_(grad) for s in shapes], (stride, padding)


def title(case: tuple, what: str) -> str:
    depth, cols, size, kernel, stride, _ = case
    return f"conv_transpose3d {depth}->{cols} at {size}, kernel {kernel}, stride {stride}, bf16, {what}"


# a decoder's middle layer, Latte's own, and kernel == stride; the others run with --full
KEPT = {CASES[2], CASES[6], CASES[8]}
GRID = [pytest.param(case, marks=[] if case in KEPT else pytest.mark.full) for case in CASES]


@pytest.mark.parametrize("case", GRID, ids=str)
def test_forward(case: tuple, compare: Any) -> None:
    args, window = tensors(case)

    def check() -> None:
        with torch.no_grad():
            oracle = F.conv_transpose3d(*(a.float() for a in args), *window)
            got, same = ops.conv_transpose3d(*args, *window), F.conv_transpose3d(*args, *window)
        testing.assert_no_worse_than_torch("output", got, same, oracle)

    jit = compiled(F.conv_transpose3d)
    contenders = {
        "ours": no_grad(lambda: ops.conv_transpose3d(*args, *window)),
        "torch eager": no_grad(lambda: F.conv_transpose3d(*args, *window)),
        "torch.compile": no_grad(lambda: jit(*args, *window)),
    }
    compare(title(case, "forward"), contenders, check, seconds=3.0, on_device=True)


@pytest.mark.parametrize("case", GRID, ids=str)
def test_forward_and_backward(case: tuple, compare: Any) -> None:
    args, window = tensors(case, grad=True)
    with torch.no_grad():
        dy = torch.randn_like(F.conv_transpose3d(*args, *window))

    def step(fn: Any, leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(fn(*leaves, *window), leaves, dy.to(leaves[0].dtype))

    def check() -> None:
        oracle = step(F.conv_transpose3d, [a.detach().float().requires_grad_() for a in args])
        got, same = step(ops.conv_transpose3d, args), step(F.conv_transpose3d, args)
        for row in zip(("dx", "dw", "db"), got, same, oracle, strict=True):
            testing.assert_no_worse_than_torch(*row)

    contenders = {
        "ours": lambda: step(ops.conv_transpose3d, args),
        "torch eager": lambda: step(F.conv_transpose3d, args),
    }
    compare(title(case, "forward and backward"), contenders, check, seconds=4.0, on_device=True)
