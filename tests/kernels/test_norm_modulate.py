"""norm_modulate's kernels against the oracle: widths, dtypes, layouts, groups; then shapes and strides drawn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latte_fast import ops
from latte_fast.kernels import bias_gelu, norm_modulate
from latte_fast.reference import functional as R
from latte_fast.testing import compare
from tests.helpers.cells import pairwise
from tests.kernels.cases import DTYPES, LAYOUTS, groups, laid_out, name, randn

AXES = {
    "D": (64, 72, 384, 768, 1152, 1153),
    "dtype": tuple(DTYPES),
    "layout": LAYOUTS,
    "rows": ((2, 1, 5), (2, 2, 3), (1, 3, 4)),
    "per_frame": (False, True),
}
NAMES = ("h", "dx", "dshift", "dscale")


def check(D: int, dtype: str, layout: str, rows: tuple[int, int, int], per_frame: bool) -> None:
    wide, narrow = DTYPES[dtype]
    B, F, N = rows
    x = laid_out(layout, B, F, N, D, wide)
    shift, scale = groups(2, B * F if per_frame else B, D, narrow)
    compare(ops.norm_modulate, R.norm_modulate_ref, (x, shift, scale), NAMES)


@pytest.mark.parametrize("case", pairwise(AXES), ids=name)
def test_norm_modulate_pairs(case: dict) -> None:
    check(**case)


@pytest.mark.slow
@pytest.mark.parametrize("per_frame", AXES["per_frame"])
@pytest.mark.parametrize("rows", AXES["rows"], ids=str)
@pytest.mark.parametrize("layout", AXES["layout"])
@pytest.mark.parametrize("dtype", AXES["dtype"])
@pytest.mark.parametrize("D", AXES["D"])
def test_norm_modulate_product(D: int, dtype: str, layout: str, rows: tuple, per_frame: bool) -> None:
    check(D, dtype, layout, rows, per_frame)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    D=st.integers(1, 80),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 2),
    out_wide=st.booleans(),
)
def test_norm_modulate_any_strides(shape: list[int], D: int, order, step: int, out_wide: bool) -> None:
    # the leading dims stored in any order, every step-th index of each, up to four of them
    dims = list(range(len(shape)))
    order.shuffle(dims)
    stored = [step * shape[d] for d in dims]
    x = randn(*stored, D)[tuple(slice(None, None, step) for _ in dims)]
    x = x.permute([dims.index(d) for d in range(len(shape))] + [len(shape)])
    assert list(x.shape) == [*shape, D]
    shift, scale = groups(2, shape[0], D, torch.bfloat16)
    out_dtype = torch.float32 if out_wide else torch.bfloat16
    # D = 1 and D = 2 leave dx zero in exact arithmetic but for eps
    x = x.requires_grad_(D > 2)
    names = [n for n in NAMES if n != "dx" or D > 2]
    if x.dim() > 1:

        def oracle(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            return R.norm_modulate_ref(x, shift, scale, 1e-2, out_dtype=None if x.dtype == torch.float64 else out_dtype)

        def fast(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            return ops.norm_modulate(x, shift, scale, 1e-2, out_dtype=out_dtype)

        compare(fast, oracle, (x, shift, scale), names)


def test_norm_modulate_eps() -> None:
    x = (1e-3 * randn(3, 4, 64)).requires_grad_()
    shift, scale = groups(2, 3, 64, torch.float32)
    for eps in (1e-6, 1e-2):
        compare(
            lambda *a, eps=eps: ops.norm_modulate(*a, eps), lambda *a, eps=eps: R.norm_modulate_ref(*a, eps),
            (x, shift, scale), NAMES,
        )  # fmt: skip


def test_norm_modulate_empty_batch() -> None:
    x = torch.zeros(0, 3, 64, device=randn(1).device, requires_grad=True)
    h = ops.norm_modulate(x, x.new_zeros(0, 64), x.new_zeros(0, 64))
    h.sum().backward()
    assert h.shape == x.shape == x.grad.shape


def test_norm_modulate_sums_are_deterministic() -> None:
    x, (shift, scale) = laid_out("contiguous", 2, 3, 6, 72, torch.float32), groups(2, 2, 72, torch.float32)
    dh = randn(2, 3, 6, 72, seed=4)
    grads = [torch.autograd.grad(ops.norm_modulate(x, shift, scale), (shift, scale), dh) for _ in range(3)]
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True))


def test_more_rows_than_32_bits_count_are_refused() -> None:
    x, m = torch.empty(1, 8).expand(2**31, 8), torch.empty(1, 8)
    for why_not, args in ((norm_modulate.why_not, (x, m, m)), (bias_gelu.why_not, (x, m[0]))):
        assert why_not(*args) == "the Triton kernels count rows in 32 bits, got 2147483648"
        assert why_not(x[1:], *args[1:]) is None
