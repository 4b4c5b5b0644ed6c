"""The 8-bit ops' kernels: each value within half a step of what it stands for, scales to an ulp, ties to even."""

import pytest
import torch
from torch import Tensor

from latte_fast import ops
from latte_fast.kernels import bias_gelu_fp8, norm_modulate_fp8, rows, rows_fp8
from latte_fast.reference import functional as R
from tests.helpers.cells import pairwise
from tests.helpers.fp8 import assert_rounded, edge_rows, same_bits
from tests.kernels.cases import DTYPES, groups, laid_out, name, randn
from tests.kernels.conftest import DEVICE

if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
    pytest.skip("this GPU has no 8-bit numbers", allow_module_level=True)

AXES = {
    "D": (72, 193),
    "dtype": ("fp32", "bf16", "fp32-bf16", "fp16"),
    "layout": ("contiguous", "transposed", "flat"),
    "rows": ((2, 1, 2), (2, 2, 1)),
}


@pytest.mark.parametrize("case", pairwise(AXES), ids=name)
def test_every_op_rounds(case: dict) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", pairwise(AXES | {"D": (64, 384, 768, 1152, 1153), "rows": ((2, 1, 5), (2, 3, 4))}), ids=name
)
def test_every_op_rounds_at_the_presets_widths(case: dict) -> None:
    check(case)


def check(case: dict) -> None:
    D, layout, (B, F, N) = case["D"], case["layout"], case["rows"]
    wide, narrow = DTYPES[case["dtype"]]
    x, y = (laid_out(layout, B, F, N, D, dtype, seed).detach() for seed, dtype in enumerate((wide, narrow)))
    gate, shift, scale = (t.detach() for t in groups(3, B, D, narrow))
    bias = randn(D, dtype=narrow, seed=5)
    with torch.no_grad():
        assert_rounded("norm", *ops.norm_modulate_fp8(x, shift, scale), norm(x, shift, scale))
        pos = randn(N, D, dtype=wide, seed=6) if layout == "contiguous" else None
        out, *fused = ops.gate_residual_norm_modulate_fp8(x, y, gate, shift, scale, y_bias=bias, pos=pos)
        plain, _ = ops.gate_residual_norm_modulate(x, y, gate, shift, scale, y_bias=bias, pos=pos)
        assert torch.equal(out, plain)
        if rows.interpreted() and wide == torch.bfloat16:  # whose x' is rounded after the kernel
            out = R.gate_residual_ref(x.double(), y.double() + bias, gate.double()) + (0 if pos is None else pos)
        assert_rounded("fused", *fused, norm(out, shift, scale))
        # a modulation and GELU that hold the factor of the next layer's input
        shift, scale, factor = (randn(*s, seed=7) for s in (shift.shape, scale.shape, (D,)))
        assert_rounded("wide norm", *ops.norm_modulate_fp8(x, shift, scale), norm(x, shift, scale))
        wide_fused = ops.gate_residual_norm_modulate_fp8(x, y, gate, shift, scale, y_bias=bias, pos=pos)[1:]
        assert_rounded("wide fused", *wide_fused, norm(out, shift, scale))
        gelu = R.bias_gelu_ref(y.double(), bias.double())
        assert_rounded("gelu", *ops.bias_gelu_fp8(y, bias), gelu)
        assert_rounded("gelu times a factor", *ops.bias_gelu_fp8(y, bias, factor=factor), gelu * factor)
        assert same_bits(ops.rows_fp8(y), R.rows_fp8_ref(y))


def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return R.norm_modulate_ref(x.double(), shift.double(), scale.double())


def test_edges_are_the_oracles_bits() -> None:
    """Ties, both ends of the range, zeros, NaN and infinities."""
    x = edge_rows().to(randn(1).device)
    assert same_bits(ops.rows_fp8(x), R.rows_fp8_ref(x))
    values, scale = ops.bias_gelu_fp8(torch.full((2, 64), float("nan"), device=x.device))
    assert (values.float() * scale).isnan().all()


def test_empty_batch() -> None:
    x, g = torch.zeros(0, 3, 64, device=randn(1).device), torch.zeros(0, 64, device=randn(1).device)
    for values, scale in (ops.rows_fp8(x), ops.norm_modulate_fp8(x, g, g), ops.bias_gelu_fp8(x)):
        assert values.shape == x.shape and scale.shape == (0, 3, 1) and values.dtype == rows.FP8


def test_a_gpu_without_8_bit_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))

    class OnGpu:
        is_cuda, device = True, torch.device("cuda")

    want = "fp8 (e4m3) needs a GPU of compute capability 8.9 or more, this one has 8.0"
    for module in (norm_modulate_fp8, bias_gelu_fp8, rows_fp8):
        args = [OnGpu()] * (module.why_not.__code__.co_argcount)
        assert module.why_not(*args) == want
