"""The row kernels (norm_modulate, gate_residual, gate_residual_norm_modulate) through the ops, on the C++ backend."""

import itertools
import math
import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latte_fast import _ext, ops, use_backend
from latte_fast.reference import functional as ref
from latte_fast.testing import compare
from tests.helpers.cells import cell_id, pairwise
from tests.helpers.guards import poisoned_empty

pytestmark = pytest.mark.skipif(_ext.why_not_built() is not None, reason=str(_ext.why_not_built()))

AXES = {
    "width": [64, 72, 384, 768, 1152, 1153],
    "dtypes": ["fp32", "bf16", "fp16", "fp32+bf16", "fp32+fp16"],
    "layout": ["plain", "strided", "expanded", "slice"],
    "sizes": [(1, 1, 1), (2, 3, 7), (1, 2, 256), (3, 5, 1)],
    "groups": ["one", "batch", "frames", "rows"],
    "extras": ["none", "bias", "pos", "both"],
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def product() -> list[dict]:
    return [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


def random_rows(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    """Draws of (B, F, N, D) whose leading axes merge, have gaps, have stride 0 or do not merge."""
    draws, b, f, n, d = shape
    if layout == "strided":
        return torch.randn(draws, b, f, n, 2 * d + 3).to(dtype)[..., 1 : d + 1]
    if layout == "expanded":
        return torch.randn(draws, b, 1, n, d).to(dtype).expand(shape)
    if layout == "slice":
        return torch.randn(draws, b, f + 2, n, d).to(dtype)[:, :, 1 : f + 1]
    return torch.randn(shape).to(dtype)


def case(cell: dict, draws: int) -> dict[str, Tensor]:
    torch.manual_seed(zlib.crc32(cell_id(cell).encode()))
    shape = (draws, *cell["sizes"], cell["width"])
    _, b, f, n, d = shape
    names = cell["dtypes"].split("+")
    wide, dtype = DTYPES[names[0]], DTYPES[names[-1]]
    groups = {"one": 1, "batch": b, "frames": b * f, "rows": b * f * n}[cell["groups"]]
    table = torch.randn(draws, groups, 6 * d).to(dtype)
    shift, scale, gate = (table[..., i * d : (i + 1) * d] for i in range(3))
    x = random_rows(shape, cell["layout"], wide)
    y = random_rows(shape, "slice" if cell["layout"] == "strided" else "plain", dtype)
    y_bias = torch.randn(draws, d).to(dtype) if cell["extras"] in ("bias", "both") else None
    pos = torch.randn(draws, 1, f, 1, d).to(wide) if cell["extras"] in ("pos", "both") else None
    tensors = {"x": x, "y": y, "gate": gate, "shift": shift, "scale": scale, "y_bias": y_bias, "pos": pos}
    return {k: None if t is None else t.requires_grad_() for k, t in tensors.items()}


def each(fn: Callable) -> Callable:
    """fn on each of its tensors' draws, the results stacked."""

    def run(*args: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        draws = range(len(args[0]))  # type: ignore[arg-type]
        results = [fn(*(None if a is None else a[i] for a in args)) for i in draws]
        if isinstance(results[0], Tensor):
            return torch.stack(results)
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))

    return run


def check_all(cell: dict, rows: int = 0) -> None:
    """With as many draws as give `rows` rows: of a few, torch's own largest error is luck, and so is twice of it."""
    t = case(cell, draws=max(1, rows // math.prod(cell["sizes"])))
    x, y, gate, shift, scale = (t[k] for k in ("x", "y", "gate", "shift", "scale"))

    def judge(fn: Callable, plain: Callable, args: tuple, names: list[str]) -> None:
        compare(each(fn), each(plain), args, names)

    with use_backend("cpu"), poisoned_empty():
        judge(ops.norm_modulate, ref.norm_modulate_ref, (x, shift, scale), ["h", "dx", "dshift", "dscale"])
        judge(ops.gate_residual, ref.gate_residual_ref, (x, y, gate), ["out", "dx", "dy", "dgate"])

        def fused(op):
            return lambda x, y, gate, shift, scale, y_bias, pos: op(
                x, y, gate, shift, scale, 1e-6, y_bias=y_bias, pos=pos
            )

        names = ["x_out", "h", "dx", "dy", "dgate", "dshift", "dscale"]
        names += ["dy_bias"] * (t["y_bias"] is not None) + ["dpos"] * (t["pos"] is not None)
        args = (x, y, gate, shift, scale, t["y_bias"], t["pos"])
        judge(fused(ops.gate_residual_norm_modulate), fused(ref.gate_residual_norm_modulate_ref), args, names)


@pytest.mark.parametrize("cell", pairwise(AXES), ids=cell_id)
def test_rows_pairwise(cell):
    check_all(cell)


@pytest.mark.slow
@pytest.mark.parametrize("width", AXES["width"])
def test_rows_product(width):
    for cell in product():
        if cell["width"] == width:
            check_all(cell, rows=128)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_rows_gradcheck(groups):
    torch.manual_seed(groups)
    x, y, bias, pos = double(2, 3, 5), double(2, 3, 5), double(5), double(3, 5)
    gate, shift, scale = (double(groups, 5) for _ in range(3))
    with use_backend("cpu"):
        assert torch.autograd.gradcheck(lambda *a: ops.norm_modulate(*a), (x, shift, scale))
        assert torch.autograd.gradcheck(ops.gate_residual, (x, y, gate))
        for out in (slice(2), slice(1), slice(1, 2)):  # both results, and the gradient of either alone

            def fused(x, y, gate, shift, scale, y_bias, pos, out=out):
                return ops.gate_residual_norm_modulate(x, y, gate, shift, scale, y_bias=y_bias, pos=pos)[out]

            assert torch.autograd.gradcheck(fused, (x, y, gate, shift, scale, bias, pos))


def test_rows_empty_batch():
    x, gate = torch.randn(0, 3, 4, 64, requires_grad=True), torch.randn(0, 64, requires_grad=True)
    with use_backend("cpu"):
        h = ops.norm_modulate(x, gate, gate)
        out, g = ops.gate_residual_norm_modulate(x, x, gate, gate, gate)
        (h.sum() + out.sum() + g.sum() + ops.gate_residual(x, x, gate).sum()).backward()
    assert h.shape == x.shape and x.grad.shape == x.shape and gate.grad.shape == gate.shape


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_same_bits_on_any_number_of_threads(threads):
    torch.manual_seed(0)
    x, y = torch.randn(2, 4, 250, 96), torch.randn(2, 4, 250, 96)
    gate, shift, scale = (torch.randn(2, 96) for _ in range(3))
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, threads):
            torch.set_num_threads(n)
            leaves = [t.clone().requires_grad_() for t in (x, y, gate, shift, scale)]
            with use_backend("cpu"):
                out, h = ops.gate_residual_norm_modulate(*leaves)
            results.append([out, h, *torch.autograd.grad([out, h], leaves, [y, x])])
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_rows_write_nothing_outside():
    from latte_fast._ext import bias_gelu

    u = torch.full((6, 80), float("nan"))
    u[1:5, 8:72] = 1.0
    bias_gelu.bias_gelu_fwd(u[1:5, 8:72], torch.zeros(64), out=u[1:5, 8:72])
    assert not u[1:5, 8:72].isnan().any()
    assert u.isnan().sum() == 6 * 80 - 4 * 64
