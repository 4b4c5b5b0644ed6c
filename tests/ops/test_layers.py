"""attention_layer and mlp_layer, with and without gradients: any strides of a bias, and what they refuse."""

import importlib
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from latte_fast import ops, use_backend
from latte_fast.modules import linear
from latte_fast.reference import functional as R
from tests.helpers.counting import Count
from tests.helpers.guards import require_backend

WIDTH, HEADS = 16, 2


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention(b: Tensor | None, w: Tensor | None = None, heads: int = HEADS) -> Tensor:
    w = rows(3 * WIDTH, WIDTH, seed=1) if w is None else w
    return ops.attention_layer(rows(1, 3, 4, WIDTH), w, b, heads, "space")


def mlp(b1: Tensor | None, w1: Tensor | None = None, w2: Tensor | None = None) -> Tensor:
    w1 = rows(64, WIDTH, seed=1) if w1 is None else w1
    return ops.mlp_layer(rows(1, 3, 4, WIDTH), w1, b1, rows(WIDTH, 64, seed=2) if w2 is None else w2)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("how", ["contiguous", "sliced", "expanded"])
def test_biases_of_any_stride(how: str, grad: bool) -> None:
    def bias(n: int) -> Tensor:
        v = rows(2 * n, seed=3)
        return {"contiguous": v[:n], "sliced": v[::2], "expanded": v[:1].expand(n)}[how].requires_grad_(grad)

    with torch.set_grad_enabled(grad):
        b, b1 = bias(3 * WIDTH), bias(64)
        got, got_mlp = attention(b), mlp(b1)
    h = rows(1, 3, 4, WIDTH)
    qkv = F.linear(h, rows(3 * WIDTH, WIDTH, seed=1), b).unflatten(-1, (3, HEADS, -1))
    torch.testing.assert_close(got, R.axis_attention_qkv_ref(qkv, "space"), rtol=1e-5, atol=1e-5)
    hidden = R.bias_gelu_ref(F.linear(h, rows(64, WIDTH, seed=1)), b1)
    torch.testing.assert_close(got_mlp, F.linear(hidden, rows(WIDTH, 64, seed=2)), rtol=1e-5, atol=1e-5)


BAD: dict[str, tuple[Callable[[], Tensor], str]] = {
    "b": (lambda: attention(rows(1)), r"attention_layer: b must be \(M,\) with M = 48, got \(1,\)"),
    "w": (lambda: attention(None, rows(48, 15)), "attention_layer: w must be .*D = 16"),
    "no heads": (lambda: attention(None, heads=0), "attention_layer: heads must divide a third of w's 48 rows, got 0"),
    "heads": (lambda: attention(None, heads=5), "attention_layer: heads must divide"),
    "b1": (lambda: mlp(rows(1)), r"mlp_layer: b1 must be \(M,\) with M = 64, got \(1,\)"),
    "gelu w": (lambda: ops.linear_gelu(rows(2, WIDTH), rows(64, 15)), r"linear_gelu: w must be \(M, D\) with D = 16"),
    "w1": (lambda: mlp(None, rows(64)), "mlp_layer: w1 must be"),
    "w2": (lambda: mlp(None, w2=rows(WIDTH, 63)), "mlp_layer: w2 must be .*M = 64"),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str, grad: bool) -> None:
    call, message = BAD[case]
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=message):
        call()


def test_gelu_in_the_product_serves_what_bias_gelu_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The epilogue of a CUDA product, which no backend is, leaves a forced one and bad shapes to bias_gelu."""
    module = importlib.import_module("latte_fast.ops.linear_gelu")  # the package's attribute is the function
    called: list[tuple[int, ...]] = []

    def epilogue(b: Tensor, x: Tensor, w: Tensor, use_gelu: bool) -> Tensor:
        called.append(tuple(x.shape))
        return F.gelu(torch.addmm(b, x, w), approximate="tanh")

    class OnCuda(Tensor):
        is_cuda = True

    monkeypatch.setattr(torch, "_addmm_activation", epilogue)
    monkeypatch.setattr(module, "call_directly", lambda *tensors: True)
    x, w, b = rows(2, 3, WIDTH), rows(64, WIDTH, seed=1), rows(64, seed=2)
    fast = x.as_subclass(OnCuda)
    assert torch.equal(ops.linear_gelu(fast, w, b).as_subclass(Tensor), R.bias_gelu_ref(F.linear(x, w, b), None))
    assert called == [(6, WIDTH)]
    with use_backend(bias_gelu="reference"):
        assert torch.equal(ops.linear_gelu(fast, w, b).as_subclass(Tensor), R.bias_gelu_ref(F.linear(x, w), b))
    with pytest.raises(ValueError, match="b must be"):
        ops.linear_gelu(fast, w, b[:1])
    with pytest.raises(ValueError, match="x must be"):
        ops.linear_gelu(fast[0, 0], w, b)
    assert len(called) == 1


@pytest.mark.parametrize("grad", [False, True])
def test_compiled_gelu_stays_in_the_product(monkeypatch: pytest.MonkeyPatch, grad: bool) -> None:
    """One op for fc1, its bias and its GELU; with a gradient the product and the one pass that keeps what it needs."""
    module = importlib.import_module("latte_fast.ops.linear_gelu")
    monkeypatch.setattr(module, "on_cuda", lambda x: True)
    monkeypatch.setattr("latte_fast.modules.linear.on_cuda", lambda x: True)

    def epilogue(b: Tensor, x: Tensor, w: Tensor, use_gelu: bool) -> Tensor:
        return F.gelu(torch.addmm(b, x, w), approximate="tanh")

    monkeypatch.setattr(torch, "_addmm_activation", epilogue)
    fc1, fc2, h = torch.nn.Linear(WIDTH, 64), torch.nn.Linear(64, WIDTH), rows(2, 3, WIDTH)
    require_backend("bias_gelu", rows(2, 64), rows(64))
    ran: list[str] = []

    def compiler(graph: torch.fx.GraphModule, inputs: object) -> Callable:
        ran.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return make_boxed_func(graph.forward)

    def layer(h: Tensor) -> Tensor:
        y, bias = linear.mlp(fc1, fc2, h)
        return y if bias is None else y + bias

    with torch.set_grad_enabled(grad):
        got = torch.compile(layer, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))(h)
    want = F.linear(R.bias_gelu_ref(fc1(h), None), fc2.weight, fc2.bias)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    names = [name for name in ran if "gelu" in name or "mm" in name]
    assert names == (
        ["aten.mm.default", "latte_fast.bias_gelu.default", "aten.mm.default"]
        if grad
        else ["latte_fast.linear_gelu.default", "aten.addmm.default"]
    )
    with FlopCounterMode(display=False) as counter:
        torch.ops.latte_fast.linear_gelu(h, fc1.weight.detach(), fc1.bias.detach())
    assert counter.get_total_flops() == 2 * 6 * WIDTH * 64


def qkv_bias_gradient(axis: str, **forced: str) -> tuple[list[Tensor], Counter[str]]:
    """Gradients of attention_layer's tensors under a random upstream gradient, and what the backward ran."""
    leaves = [rows(1, 3, 20, WIDTH), rows(3 * WIDTH, WIDTH, seed=1) / 4, rows(3 * WIDTH, seed=2)]
    leaves = [x.requires_grad_() for x in leaves]
    with use_backend(**forced):
        out = ops.attention_layer(*leaves, HEADS, axis)
        dout = rows(*out.shape, seed=3)
        with Count() as count:
            grads = torch.autograd.grad(out, leaves, dout)
    return list(grads), count.ran


@pytest.mark.parametrize("axis", ["space", "time"])
def test_qkv_bias_gradient_takes_no_pass(axis: str) -> None:
    """Two products and attention's backward; where a library attends, one sum over the tokens besides."""
    q = rows(1, 3, 20, HEADS, WIDTH // HEADS)
    backend = require_backend("axis_attention", q, q, q, axis, None, 1.0, None)
    if backend not in ("cpu", "triton"):
        pytest.skip(f"attention is served by {backend}")
    got, ran = qkv_bias_gradient(axis)
    assert ran == {"axis_attention_qkv_backward": 1, "mm": 2}
    want, others = qkv_bias_gradient(axis, axis_attention="reference")
    library, passes = qkv_bias_gradient(axis, axis_attention="sdpa")
    assert others["sum"] >= 1 and passes["sum"] == 1
    for a, b, c in zip(got, want, library, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(c, b, rtol=1e-5, atol=1e-5)


def test_attention_layer_leaves_the_call_to_a_forced_backend() -> None:
    """Which judges the call, not the empty probe by which the CPU kernel is chosen."""
    h, w, b = torch.randn(2, 3, 5, 32), torch.randn(96, 32) / 6, torch.randn(96)
    want = ops.attention_layer(h, w, b, 2, "space")
    with use_backend(axis_attention="sdpa"):
        got = ops.attention_layer(h, w, b, 2, "space")
    assert (got - want).abs().max() <= 3e-6 * want.abs().max()
