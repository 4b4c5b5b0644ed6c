"""The criterion itself: what it lets pass, what it must not, and what refills a model."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latte_fast import Latte, testing
from tests.helpers.pairs import SMALL

ORACLE = torch.tensor([1.0, -0.5], dtype=torch.float64)
TORCH = torch.tensor([1.0, -0.5 + 2.0**-10])  # torch's own error
ULP = 2.0**-23


@pytest.mark.parametrize(
    ("off", "message"),
    [
        (2 * 2.0**-10 + ULP, None),
        (-2 * 2.0**-10 - ULP, None),
        (2 * 2.0**-10 + 2 * ULP, r"dx: error 1\.95.*, torch's own 9\.76.*, limit 1\.95"),
        (math.nan, "dx: 1 of 2 values are NaN"),
        (math.inf, "dx: error inf"),
    ],
)
def test_twice_torchs_error_and_one_ulp(off: float, message: str | None) -> None:
    got = torch.tensor([1.0, -0.5 + off])
    if message is None:
        testing.assert_no_worse_than_torch("dx", got, TORCH, ORACLE)
        return
    with pytest.raises(AssertionError, match=message):
        testing.assert_no_worse_than_torch("dx", got, TORCH, ORACLE)


def test_shape_dtype_and_zeros_are_looked_at() -> None:
    with pytest.raises(AssertionError, match=r"shape \(1, 2\), expected \(2,\)"):
        testing.assert_no_worse_than_torch("dx", TORCH[None], TORCH, ORACLE)
    with pytest.raises(AssertionError, match=r"dtype torch\.float64, expected torch\.float32"):
        testing.assert_no_worse_than_torch("dx", ORACLE, TORCH, ORACLE)
    zeros = torch.zeros(2)
    testing.assert_no_worse_than_torch("dx", zeros, zeros, zeros.double())
    with pytest.raises(AssertionError, match="dx: 1"):
        testing.assert_no_worse_than_torch("dx", zeros + 1e-30, zeros, zeros.double())


def test_gradient_that_is_zero_in_exact_arithmetic() -> None:
    noise, zeros = torch.tensor([3e-7, 0.0]), torch.zeros(2)
    testing.assert_no_worse_than_torch("dk", noise, zeros, zeros.double(), vanishing=4e-7)
    with pytest.raises(AssertionError, match="but zero in exact arithmetic"):
        testing.assert_no_worse_than_torch("dk", noise, zeros, zeros.double(), vanishing=2e-7)
    with pytest.raises(AssertionError, match="torch's own"):
        testing.assert_no_worse_than_torch("dk", noise, TORCH, ORACLE, vanishing=2e-7)


class _Gradients(torch.autograd.Function):
    """a * b, whose gradients are off by the factors given."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, a: Tensor, b: Tensor, off: tuple[float, float]) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.off = off  # type: ignore[attr-defined]
        return a * b

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, d: Tensor) -> tuple:  # type: ignore[override]
        a, b = ctx.saved_tensors  # type: ignore[attr-defined]
        return d * b * ctx.off[0], d * a * ctx.off[1], None  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("fn", "wrong"),
    [
        (lambda a, b: a * b, None),
        (lambda a, b: a * b * 1.1, "out"),
        (lambda a, b: _Gradients.apply(a, b, (1.1, 1.0)), "da"),
        (lambda a, b: _Gradients.apply(a, b, (1.0, 0.0)), "db"),
    ],
    ids=["right", "output", "gradient", "no gradient"],
)
def test_compare_judges_every_output_and_gradient(
    fn: Callable[[Tensor, Tensor], Tensor], wrong: str | None, dtype: torch.dtype
) -> None:
    a, b = (torch.randn(200, dtype=dtype, requires_grad=True) for _ in range(2))
    names = ["out", "da", "db"]
    if wrong is None:
        testing.compare(fn, torch.mul, (a, b), names)
        with pytest.raises(AssertionError, match="2 gradients, 1 names"):
            testing.compare(fn, torch.mul, (a, b), names[:2])
        return
    with pytest.raises(AssertionError, match=f"^{wrong}: error"):
        testing.compare(fn, torch.mul, (a, b), names)


def test_oracle_is_wider() -> None:
    assert [testing.wider(d) for d in (torch.float64, torch.float32)] == [torch.float64] * 2
    assert [testing.wider(d) for d in (torch.bfloat16, torch.float16)] == [torch.float32] * 2


def test_compare_widens_every_argument_of_the_oracle() -> None:
    """In pairs too, to the widest that any of them asks for; whole numbers and masks stay as they are."""
    seen = []

    def ref(a: Tensor, pair: tuple[Tensor, Tensor], n: Tensor) -> Tensor:
        seen.append([x.dtype for x in (a, *pair, n)])
        return a * pair[0].to(a.dtype) + n

    a, b, n = torch.randn(9, requires_grad=True), torch.randn(9, dtype=torch.bfloat16), torch.arange(9)
    testing.compare(lambda *args: ref(*args), ref, (a, (b, b), n), ["out", "da"])
    given, wide = [a.dtype, b.dtype, b.dtype, n.dtype], [torch.float64] * 3 + [n.dtype]
    assert seen == [given] * 3 + [wide]


def test_relative_error() -> None:
    assert testing.relative_error(torch.tensor([2.0, 3.0]), torch.tensor([2.0, 4.0])) == 0.25
    assert testing.relative_error(torch.tensor([math.nan]), torch.ones(1)) == math.inf


def test_refilled_weights() -> None:
    """What was zero and the embedders are drawn anew, with the fan-in's spread; all else stays."""
    model = Latte(**SMALL | {"hidden_size": 256}, extras=2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    testing.refill(model)
    for name, p in model.named_parameters():
        embedder = name.startswith(("t_embedder", "y_embedder"))
        assert torch.equal(p, before[name]) != (p.requires_grad and (embedder or not before[name].any())), name
        if not torch.equal(p, before[name]) and p.numel() > 200:
            assert p.std().item() == pytest.approx(p[0].numel() ** -0.5 if p.dim() > 1 else 0.1, rel=0.2), name


def test_every_pair_of_values_meets() -> None:
    axes = {"a": [1, 2, 3], "b": ["x", "y"], "c": [True, False, None], "d": [0]}
    cells = testing.pairwise(axes)
    assert len(cells) < 18
    for one, two in itertools.combinations(axes, 2):
        assert {(cell[one], cell[two]) for cell in cells} == set(itertools.product(axes[one], axes[two]))


def test_only_our_allocations_are_poisoned() -> None:
    before = torch.empty
    with testing.poisoned_empty():
        assert not torch.empty(4).fill_(1).isnan().any()
        for place in ("latte_fast/ops", "kernels"):
            source = "made = torch.empty(4), torch.empty(4, dtype=torch.int64)"
            exec(compile(source, f"/x/{place}/y.py", "exec"), names := {"torch": torch})
            assert names["made"][0].isnan().all()  # type: ignore[index]
    assert torch.empty is before
