"""Registering an op: what its two schemas say is derived, and what it registers is what others read."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from latte_fast import backends, ops
from latte_fast.ops.registration import LIBRARY, REGISTRY, KernelOp, empty
from latte_fast.ops.sizes import Sizes
from latte_fast.reference import functional as R

SMALL = Sizes(1, frames=4, patches=6, width=16, heads=2, device=torch.device("cpu"), dtype=torch.float64, words=5)
ROW, COLUMN = torch.randn(4, 3).double(), torch.randn(4, 1).double()


@pytest.mark.parametrize("op", REGISTRY)
def test_examples_are_calls(op: str) -> None:
    """Doctor, tune and the benchmarks hand them to the op, its oracle and its probes."""
    for _, args in (("", REGISTRY[op].example(SMALL)), *REGISTRY[op].more_examples(SMALL)):
        got, want = getattr(ops, op)(**args), getattr(R, f"{op}_ref")(**args)
        torch.testing.assert_close(got, want)
        for backend in backends.candidates(op) if op in backends.ops() else ():
            reason = backends.why_not(op, backend, *args.values())
            assert reason is None or reason


def fwd(x: Tensor, c: Tensor, w: Tensor | None, power: int) -> tuple[Tensor, Tensor]:
    y = (x + c) ** power
    return y if w is None else y * w, y.abs()


def bwd(dy: Tensor, x: Tensor, c: Tensor, w: Tensor | None, power: int, needs: list[bool]) -> tuple[Tensor, Tensor]:
    assert dy.is_contiguous()
    slope = power * (x + c) ** (power - 1) * (1 if w is None else w)
    dw = ((x + c) ** power * dy).sum(0) if needs[1] else x.new_empty(0)
    return dy * slope, dw


@pytest.fixture(scope="module")
def toy() -> Iterator[KernelOp]:
    """((x + c)^power * w, a size that has no derivative), served by launchers in a module of its own."""
    home = ModuleType("latte_fast._ext.toy")
    home.__dict__.update(toy_fwd=fwd, toy_bwd=bwd, why_not=lambda x, *args: "x is empty" if not x.numel() else None)
    sys.modules[home.__name__] = home
    yield KernelOp(
        "toy",
        "(Tensor x, Tensor c, Tensor? w, int power, str backend) -> (Tensor y, Tensor size)",
        "(Tensor dy, Tensor x, Tensor c, Tensor? w, int power, bool[] needs, str backend) -> (Tensor dx, Tensor dw)",
        fake=lambda x, c, w, power: (empty(x), empty(x)),
        backward_fake=lambda dy, x, c, w, power, needs: (empty(x), x.new_empty(x.shape[1] if needs[1] else 0)),
        sums={"c": "dx"},
        flops=lambda x, *rest: x[0] * x[1],
        backward_flops=lambda dy, *rest: 2 * dy[0] * dy[1],
        ours=("cpu",),
        example=lambda sizes: {},
    )
    del REGISTRY["toy"], backends._probes["toy"], sys.modules[home.__name__]


@pytest.mark.parametrize("weighted", [True, False])
def test_gradients_follow_the_names(toy: KernelOp, weighted: bool) -> None:
    """By backward, by sum, none for a result without one, and asked for only where needed."""
    x, c = ROW.clone().requires_grad_(), COLUMN.clone().requires_grad_()
    w = torch.randn(3).double().requires_grad_() if weighted else None
    leaves = [t for t in (x, c, w) if t is not None]
    y, size = toy(x, c, w, 3)
    assert not size.requires_grad
    dy = torch.randn(3, 4).double().T
    got = torch.autograd.grad(y, leaves, dy)
    torch.testing.assert_close(got, torch.autograd.grad(fwd(x, c, w, 3)[0], leaves, dy))
    torch.library.opcheck(torch.ops.latte_fast.toy.default, (x, c, w, 3, "cpu"))
    with pytest.raises(RuntimeError, match=r'toy: no second derivative; for one, .* use_backend\(toy="reference"\)'):
        torch.autograd.grad(toy(x, c, w, 3)[0].sum(), x, create_graph=True)[0].sum().backward()


def test_fake_gradients_where_arguments_are_missing() -> None:
    """The fused op without its norm's gradient and a bias: an empty gradient in y's dtype, as the launchers'."""
    with FakeTensorMode():
        x, y, g = torch.empty(2, 3, 8), torch.empty(2, 3, 8).half(), torch.empty(2, 8).half()
        backward = torch.ops.latte_fast.gate_residual_norm_modulate_backward.default
        grads = backward(x, None, x, y, None, g, g, 1e-6, "cpu")
    assert [tuple(d.shape) for d in grads] == [x.shape, y.shape, g.shape, g.shape, g.shape, (0,)]
    assert [d.dtype for d in grads] == [torch.float32] + [torch.float16] * 5


def test_formulas_probes_and_schemas_are_registered(toy: KernelOp) -> None:
    x = ROW.clone().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        toy(x, COLUMN, None, 2)[0].sum().backward()
    assert counter.get_total_flops() == 3 * 12
    assert backends.candidates("toy") == ("cpu", "reference")
    assert backends.why_not("toy", "cpu", x[:0]) == "x is empty"
    # names of results are for us: other programs find what they have found
    schema = "latte_fast::toy(Tensor x, Tensor c, Tensor? w, int power, str backend) -> (Tensor, Tensor)"
    assert str(torch.ops.latte_fast.toy.default._schema) == schema and LIBRARY.ns == "latte_fast"
