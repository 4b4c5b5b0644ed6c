"""The criterion itself: what it lets pass, what it must not, and what refills a model."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._device import _device_constructors

from latte_fast import Latte, testing
from latte_fast.reference import functional as R
from tests.helpers.cells import pairwise
from tests.helpers.guards import poisoned_empty
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


def sums(dtype: torch.dtype) -> dict[str, tuple[Callable, tuple]]:
    """References whose results and gradients are sums: products, softmax, norm, broadcasts, windows."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()

    q, k, v = (draw(2, 2, 9, 2, 40, seed=s) for s in range(3))
    mask = torch.arange(9).expand(2, 9) < 7
    x, y, gate, shift, scale = (draw(*s, seed=i) for i, s in enumerate([(2, 8, 72)] * 2 + [(2, 72)] * 3))
    window = {"stride": (2, 1, 2), "padding": (1, 0, 1), "groups": 2}
    clips, weight = draw(3, 8, 2, 3, 5), draw(8, 4, 3, 2, 3, seed=1)
    return {
        "attention": (lambda q, k, v: R.axis_attention_ref(q, k, v, "space", key_mask=mask), (q, k, v)),
        "norm": (R.gate_residual_norm_modulate_ref, (x, y, gate, shift, scale)),
        "affine norm": (lambda x, w, b: F.layer_norm(x, (72,), w, b), (x, draw(72, seed=7), draw(72, seed=8))),
        "linear": (F.linear, (x, draw(40, 72, seed=5), draw(40, seed=6))),
        "conv_transpose": (functools.partial(R.conv_transpose3d_ref, **window), (clips, weight, draw(8, seed=2))),
        "conv": (
            functools.partial(F.conv3d, padding=1, groups=2),
            (clips, draw(6, 4, 3, 2, 3, seed=3), draw(6, seed=4)),
        ),
        "mean": (lambda x: (x.mean((0, 2)), x.sum()), (x,)),
    }


def spread(fn: Callable, args: tuple) -> list[float]:
    """How far reorderings move each result and each gradient, relative to its largest value."""
    out = fn(*args)
    generator = torch.Generator().manual_seed(9)
    dout = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in ([out] if isinstance(out, Tensor) else out)]

    def run() -> list[Tensor]:
        return list(itertools.chain(*testing.run_with_grads(fn, args, dout)))

    plain = run()
    return [e / p.abs().max().item() for e, p in zip(testing.largest_errors(run, plain), plain, strict=True)]


@pytest.mark.parametrize("name", list(sums(torch.float64)))
def test_reordered_sums_are_the_same_maths(name: str) -> None:
    """In float64 nothing changes but the last bits; in fp32 those do."""
    moved, moved_wide = (spread(*sums(dtype)[name]) for dtype in (torch.float32, torch.float64))
    assert max(moved_wide) <= 1e-13 and max(moved) > 5e-8, (moved, moved_wide)


def test_reordered_sums_of_every_gradient() -> None:
    """Those that autograd takes backward are reordered too, in a product, a softmax, a norm and a broadcast alike."""
    assert min(spread(*sums(torch.float32)["attention"])) > 5e-8
    assert min(spread(*sums(torch.float32)["affine norm"])) > 5e-8


def test_reorderings_are_the_second_limit() -> None:
    """Run only where torch's own error of one order does not do, once for all rows of a comparison."""
    runs = 0

    def ref(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal runs
        runs += 1
        return a @ b, a @ b

    a, b = (torch.randn(64, 64, generator=torch.Generator().manual_seed(s)) for s in range(2))
    exact = (a.double() @ b.double()).float()
    testing.compare(lambda a, b: (exact, exact), ref, (a, b), ["one", "two"])
    assert runs == 2  # in fp32 and in float64
    with pytest.raises(AssertionError, match=r"one: error 1\.0.*e-02, torch's own"):
        testing.compare(lambda a, b: (exact + 1e-2, exact + 1e-2), ref, (a, b), ["one", "two"])
    assert runs == 4 + testing.REORDERINGS
    largest = testing.largest_errors(lambda: [a @ b], [exact])[0]
    name, same = "one", a @ b
    for factor, right in ((2.9, True), (3.2, False)):
        got = exact + torch.tensor(factor * largest)
        with contextlib.nullcontext() if right else pytest.raises(AssertionError, match="limit"):
            testing.assert_no_worse_than_torch(name, got, same, exact.double(), reordered=lambda: largest)
        with pytest.raises(AssertionError, match="limit"):
            testing.assert_no_worse_than_torch(name, got, exact, exact.double())


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
    cells = pairwise(axes)
    assert len(cells) < 18
    for one, two in itertools.combinations(axes, 2):
        assert {(cell[one], cell[two]) for cell in cells} == set(itertools.product(axes[one], axes[two]))


def test_only_our_allocations_are_poisoned() -> None:
    before = torch.empty
    with poisoned_empty():
        assert not torch.empty(4).fill_(1).isnan().any()
        for place in ("latte_fast/ops", "kernels"):
            source = "made = torch.empty(4), torch.empty(4, dtype=torch.int64)"
            exec(compile(source, f"/x/{place}/y.py", "exec"), names := {"torch": torch})
            assert names["made"][0].isnan().all()  # type: ignore[index]
    assert torch.empty is before


def test_poison_leaves_no_trace() -> None:
    """A device context's list of functions is made once, and would hold the poisoned ones for good."""
    _device_constructors.cache_clear()
    with poisoned_empty(), torch.device("meta"):
        torch.zeros(1)
    with torch.device("meta"):
        assert torch.empty(1).is_meta
