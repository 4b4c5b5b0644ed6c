"""linear_layer and mlp_kept by cuBLASLt's stub: numbers, gradients, who is asked, and when torch is asked instead."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from latte_fast import ops
from latte_fast._ext.blas_lt import WAYS, Plan, Product
from latte_fast.kernels import library_choice
from latte_fast.modules.recompute import _policy
from latte_fast.ops import linear_layer as module
from latte_fast.ops.linear_layer import linear_layer, mlp_kept
from latte_fast.testing import assert_no_worse_than_torch
from tests.helpers.blas_stub import Stub, build, install

D, HIDDEN, ROWS = 16, 64, 10
Table = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    return build(tmp_path_factory.mktemp("blas_lt"))


@pytest.fixture
def stub(built: Stub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """The stub under a table that names an algorithm for every product of the tests' two layers."""
    install(built, monkeypatch)
    table = {}
    for n, k in ((HIDDEN, D), (D, HIDDEN), (3 * D, D)):
        for way in WAYS:
            product = Product(way, ROWS, n, k, torch.bfloat16)
            algorithm = Plan(product, None).search()[0]  # type: ignore[arg-type]
            table[product.key] = {"backend": "cublaslt", "algorithm": algorithm.hex(), "version": 130100}
    use(table, monkeypatch)
    built.clear()
    yield built
    forget()
    built.clear()


def use(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_choice, "_table", lambda device: table)
    forget()


def forget() -> None:
    module._has_products.cache_clear()
    module._plan.cache_clear()


def drawn(*shapes: tuple[int, ...], grad: bool = True) -> list[Tensor]:
    torch.manual_seed(0)
    return [(torch.randn(s) / s[-1] ** 0.5).bfloat16().requires_grad_(grad) for s in shapes]


def judged(run: Callable, plain: Callable, leaves: list[Tensor]) -> None:
    """Asserts that a run's result and gradients are no worse than those of plain torch, by float64."""
    out = run(*leaves)
    dout = torch.randn_like(out)
    got = [out, *torch.autograd.grad(out, leaves, dout)]
    same, exact = [], []
    for found, dtype in ((same, torch.bfloat16), (exact, torch.float64)):
        own = [x.detach().to(dtype).requires_grad_() for x in leaves]
        y = plain(*own)
        found += [y, *torch.autograd.grad(y, own, dout.to(dtype))]
    for i, values in enumerate(zip(got, same, exact, strict=True)):
        assert values[0].shape == values[2].shape
        assert_no_worse_than_torch(f"result or gradient {i}", *(v.detach() for v in values))


def test_linear_layer_equals_torch(stub: Stub) -> None:
    leaves = drawn((2, 5, D), (HIDDEN, D), (HIDDEN,))
    judged(linear_layer, F.linear, leaves)
    assert stub.ways() == ["forward-bias", "dgrad", "wgrad-bias"]
    stub.clear()
    judged(linear_layer, F.linear, leaves[:2])
    assert stub.ways() == ["forward", "dgrad", "wgrad"]
    stub.clear()
    with torch.no_grad():
        linear_layer(*leaves)
    assert stub.ways() == ["forward-bias"]
    stub.clear()
    x, w, b = drawn((2, 5, D), (HIDDEN, D), (HIDDEN,), grad=False)
    torch.autograd.grad(linear_layer(x, w.requires_grad_(), b).sum(), w)
    assert stub.ways() == ["forward-bias", "wgrad"]


def gelu_mlp(h: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(h, w1, b1), approximate="tanh"), w2)


def test_mlp_layer_has_gelu_and_its_derivative_in_products(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = drawn((2, 5, D), (HIDDEN, D), (HIDDEN,), (D, HIDDEN))
    before = library_choice._table(leaves[0].device)
    for missing, backward in (
        ((), ["dgrad-gelu-bias", "dgrad", "wgrad", "wgrad"]),
        (("dgrad-gelu-bias",), ["dgrad-gelu", "dgrad", "wgrad-bias", "wgrad"]),
        (("dgrad-gelu-bias", "dgrad-gelu"), ["dgrad", "dgrad", "wgrad", "wgrad"]),
    ):
        named = {
            key: fields
            for key, fields in before.items()
            if not key.startswith(tuple(f"product/{m}-M" for m in missing))
        }
        use(named, monkeypatch)
        stub.clear()
        judged(ops.mlp_layer, gelu_mlp, leaves)
        assert stub.ways() == ["forward-bias-gelu-kept", "forward", *backward]


def test_attention_layer_has_its_product_by_the_table(stub: Stub) -> None:
    leaves = drawn((2, 1, 5, D), (3 * D, D), (3 * D,))
    ops.attention_layer(*leaves, 2, "space").sum().backward()
    assert stub.ways()[0] == "forward-bias" and stub.ways().count("dgrad") == 1
    assert stub.ways()[-1].startswith("wgrad")


def test_gelu_of_inference_is_in_the_product(stub: Stub) -> None:
    given = drawn((2, 5, D), (HIDDEN, D), (HIDDEN,), grad=False)
    got = module.gelu_in_product(*given)
    assert got is not None and stub.ways() == ["forward-bias-gelu"]
    same, exact = (F.gelu(F.linear(*(x.to(d) for x in given)), approximate="tanh") for d in (got.dtype, torch.float64))
    assert_no_worse_than_torch("gelu", got, same, exact)


def test_torch_is_asked(stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    x, w, b = drawn((2, 5, D), (HIDDEN, D), (HIDDEN,))
    with torch.autocast("cpu", torch.bfloat16):
        linear_layer(x, w, b)
    torch.func.grad(lambda x: linear_layer(x, w.detach()).sum())(x.detach())
    linear_layer(x[:, :3], w, b)  # six rows, which the table does not have
    linear_layer(x.transpose(0, 1), w, b)  # a view with gaps between rows
    linear_layer(x.float(), w.float(), b.float())
    seen: list[str] = []

    def compiler(graph: torch.fx.GraphModule, inputs: object) -> Callable:
        seen.extend(str(n.target) for n in graph.graph.nodes)
        return graph.forward

    torch.compile(lambda x: linear_layer(x, w, b), backend=compiler, fullgraph=True)(x)
    assert not [name for name in seen if "linear_layer" in name]
    assert not stub.ways()
    named = library_choice._table(x.device)
    use({key: fields | {"version": 120900} for key, fields in named.items()}, monkeypatch)
    linear_layer(x, w, b)
    use({key: fields | {"algorithm": "00" * 64} for key, fields in named.items()}, monkeypatch)
    with caplog.at_level(logging.WARNING, "latte_fast"):
        torch.testing.assert_close(linear_layer(x, w, b), F.linear(x, w, b))
        linear_layer(x, w, b)
    assert not stub.ways()
    said = [r.getMessage().partition(" (")[0] for r in caplog.records if r.name == "latte_fast"]
    assert said == ["latte_fast: cuBLASLt refuses the algorithm of product/forward-bias-M10-N64-K16-bfloat16"]


def test_flops_are_those_of_torch(stub: Stub) -> None:
    leaves = drawn((2, 5, D), (HIDDEN, D), (HIDDEN,), (D, HIDDEN))
    counts = []
    for run in (gelu_mlp, ops.mlp_layer, lambda *a: linear_layer(F.gelu(linear_layer(*a[:3])), a[3])):
        with FlopCounterMode(display=False) as counter:
            run(*leaves).sum().backward()  # type: ignore[operator]
        counts.append(counter.get_total_flops())
    assert counts == [counts[0]] * 3


@pytest.mark.parametrize(("keep_fc1", "again"), [(True, 0), (False, 1)])
def test_recompute_keeps_products(stub: Stub, keep_fc1: bool, again: int) -> None:
    """ "elementwise" keeps both products, "mlp" all but fc1's."""
    h, w1, w2 = drawn((2, 5, D), (HIDDEN, D), (D, HIDDEN))

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(lambda *args, **kwargs: _policy(keep_fc1, HIDDEN, *args, **kwargs))

    def run(h: Tensor) -> Tensor:
        return linear_layer(F.gelu(linear_layer(h, w1)), w2)

    out = checkpoint(run, h, use_reentrant=False, context_fn=contexts)
    assert len(stub.ways()) == 2
    out.sum().backward()
    widths = [line[0] for line, way in zip(stub.products(), stub.ways(), strict=True) if way == "forward"]
    assert widths == [HIDDEN, D, *[HIDDEN] * again]


@pytest.mark.slow
def test_opcheck(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b, w2 = drawn((2, 5, D), (HIDDEN, D), (HIDDEN,), (D, HIDDEN))
    assert mlp_kept(x, w, b, w2) is not None
    use({}, monkeypatch)  # so that both sides of its comparison round alike
    assert mlp_kept(x, w, b, w2) is None
    torch.library.opcheck(torch.ops.latte_fast.linear_layer.default, (x, w, b))
    torch.library.opcheck(torch.ops.latte_fast.mlp_kept.default, (x, w, b, w2))
