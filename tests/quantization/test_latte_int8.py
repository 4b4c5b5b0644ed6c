"""quantize of Latte to int8: what the model computes then, the way back, oneDNN's packed weights, and every family."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latte_fast
from latte_fast import Latte, ops, testing
from latte_fast.modules.linear8 import Linear8, Rows8, product, rows8
from latte_fast.ops import onednn
from latte_fast.quantization import convert
from latte_fast.quantization.rounding import compensated
from latte_fast.reference import functional as R
from tests.helpers.tiny_latte import KEYWORDS, refilled
from tests.quantization.test_families import call, flex_model, joint_model, text_model

X, T = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([3, 500])
DEFAULTS = ("qkv", "fc1", "fc2")


@pytest.fixture
def model() -> Latte:
    return refilled().eval()


def emulated(model: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    """The oracle: a copy whose layers round their weight's and input's rows in a hook, and multiply in fp32."""
    model = copy.deepcopy(model)

    def rounded(x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() * scale

    for name, layer in model.named_modules():
        if name.split(".")[-1] in layers and "blocks" in name:
            layer.weight.data = rounded(layer.weight.data)
            layer.register_forward_pre_hook(lambda layer, args: (rounded(args[0]), *args[1:]))
    return model


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@torch.no_grad()
@pytest.mark.parametrize("layers", [DEFAULTS, ("fc1",), ("fc2",), ("qkv", "proj")], ids=str)
@pytest.mark.parametrize("variant", [1, 3, 4])
def test_forward_is_that_of_rounded_layers(layers: tuple[str, ...], variant: int) -> None:
    torch.manual_seed(0)
    model = testing.refill(Latte(**KEYWORDS | {"variant": variant})).eval()
    before = model(X, T)
    oracle = emulated(model, layers)(X, T)
    latte_fast.quantize(model, "int8", layers=layers)
    # fp32 sums of another order move few values over the edge of a step, each by a step
    away = distance(oracle, before)
    assert 3e-4 < away < 0.02
    assert distance(model(X, T), oracle) < 0.35 * away


@torch.no_grad()
def test_back_is_bit_for_bit_and_no_pass_is_added(model: Latte, monkeypatch: pytest.MonkeyPatch) -> None:
    before, modules = model(X, T), dict(model.named_modules())
    report = latte_fast.quantize(model, "int8")
    assert len(report.taken) == 6 and "proj is not among" in str(report)
    assert all(layer.error < 0.006 for layer in report.layers.values())
    with pytest.raises(ValueError, match="has 8-bit layers already"):
        latte_fast.quantize(model, "int8")
    calls: list[str] = []
    for name in ("norm_modulate_int8", "gate_residual_norm_modulate_int8", "bias_gelu_int8", "rows_int8"):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, op=op, name=name, **k: (calls.append(name), op(*a, **k))[1])
    assert not torch.equal(model(X, T), before)
    fused = "gate_residual_norm_modulate_int8"
    assert calls == ["norm_modulate_int8", fused, "bias_gelu_int8", fused, fused, "bias_gelu_int8"]
    latte_fast.unquantize(model)
    assert dict(model.named_modules()) == modules and torch.equal(model(X, T), before)


@torch.no_grad()
def test_products_are_exact() -> None:
    """The result of 8-bit operands, of any number of rows, with and without a bias, autocast or not."""
    layer = Linear8(nn.Linear(48, 32).eval(), precision="int8")
    rows = rows8(torch.randn(3, 7, 48), "int8")
    exact = (rows.values.double() * rows.scale) @ (layer.weight.double() * layer.weight_scale[:, None]).t()
    for bias, want in ((None, exact), (layer.bias, exact + layer.bias.double())):
        assert testing.relative_error(product(rows, layer.weight, layer.weight_scale, bias), want) < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert testing.relative_error(layer.product(rows), exact) < 1e-6
    assert layer(Rows8(rows.values, rows.scale, torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="8-bit layers do not train"):
        layer.train()(torch.randn(2, 48))


# of FlexDiT all MLPs, and the qkv of its S and D blocks, six of twelve
@torch.no_grad()
@pytest.mark.parametrize(("make", "count"), [(text_model, 20), (flex_model, 30), (joint_model, 6)])
def test_families(make: Any, count: int) -> None:
    """Near the 16-bit result, calibrated or not, and the same bits after the way back."""
    model, inputs = make()
    want = call(model, inputs)
    errors = []
    for calibrate in (None, lambda m: call(m, inputs)):
        report = latte_fast.quantize(model, "int8", calibrate=calibrate)
        assert len(report.taken) == count, str(report)
        errors.append(distance(call(model, inputs), want))
        latte_fast.unquantize(model)
        assert torch.equal(call(model, inputs), want)
    assert 1e-4 < errors[0] < 0.02 and errors[1] < errors[0]
    assert all(layer.snr is not None and layer.snr > 30 for layer in report.layers.values() if not layer.kept)


def test_weights_rounded_for_inputs_are_integers() -> None:
    weight = torch.randn(16, 48)
    x = torch.randn(300, 12) @ torch.randn(12, 48) + 0.1 * torch.randn(300, 48)
    nearest, made = rows8(weight, "int8"), compensated(weight, x.t() @ x, "int8")
    assert made[0].dtype == torch.int8 and torch.equal(made[1], nearest.scale)
    lost = [(x @ (values.float() * nearest.scale - weight).t()).norm() for values in (made[0], nearest.values)]
    assert lost[0] < 0.5 * lost[1]


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's products in bf16, whose sums are exact on every processor though slow without VNNI."""
    monkeypatch.setattr(onednn, "served", lambda: onednn.Served(None, True))


@torch.no_grad()
@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("make", [refilled, text_model], ids=["latte", "text"])
def test_onednn_and_the_emulation_agree(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()
    model, inputs = (made[0], made[1]) if isinstance(made, tuple) else (made.eval(), (X, T))
    model, inputs = model.bfloat16(), tuple(x.bfloat16() if x.is_floating_point() else x for x in inputs)
    before = call(model, inputs).float()
    latte_fast.quantize(model, "int8")
    got = call(model, inputs).float()
    assert sum("weight" not in m._buffers for m in model.modules() if isinstance(m, Linear8)) > 5
    monkeypatch.setattr(onednn, "served", lambda: onednn.Served("there is no VNNI"))
    want = call(model, inputs).float()
    # of rows rounded to bf16 before they are scaled
    assert 0 < distance(got, want) < 0.5 * distance(want, before) + 0.01


@torch.no_grad()
@pytest.mark.usefixtures("by_onednn")
def test_a_packed_weight_is_still_a_weight() -> None:
    """Read, saved, copied, moved, replaced and loaded as before it was packed."""
    layer = Linear8(nn.Linear(48, 32).bfloat16().eval(), precision="int8")
    x, weight = torch.randn(5, 48).bfloat16(), layer.weight.clone()
    want = layer.product(x)
    assert "weight" not in dict(layer.named_buffers())  # whose place the packed one took
    assert torch.equal(layer.weight, weight) and torch.equal(layer.state_dict()["weight"], weight)
    copied = copy.deepcopy(layer)
    assert (
        torch.equal(copied.weight, weight)
        and torch.equal(copied.product(x), want)
        and torch.equal(layer.product(x), want)
    )
    assert torch.equal(layer.float().weight, weight) and layer.weight.dtype == torch.int8
    layer.product(x)
    layer.load_state_dict(layer.state_dict() | {"weight": -weight})
    assert torch.equal(layer.weight, -weight) and torch.equal(layer.product(x), -want)
    layer.weight = weight
    assert torch.equal(layer.product(x), want)


def test_refusals(model: Latte, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="layers must be some of qkv, proj, fc1, fc2, got head"):
        latte_fast.quantize(model, "int8", layers=("head",))
    with pytest.raises(ValueError, match="has no linear layers that may be 8 bits wide; a model of another library"):
        latte_fast.quantize(nn.Linear(16, 16).eval(), "int8")
    latte_fast.quantize(model, "int8")
    with pytest.raises(ValueError, match="has no gradient"):
        model(X, T)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    reason = convert.why_no_products(torch.device("cuda"), "int8")
    assert reason == "int8 needs a GPU of compute capability 8.0 or more, T4 has 7.5"


@pytest.mark.slow
@torch.no_grad()
def test_compiles_to_one_graph(model: Latte) -> None:
    latte_fast.quantize(model, "int8")
    want = model(X, T)
    torch._dynamo.reset()
    assert distance(torch.compile(model, fullgraph=True, backend="eager")(X, T), want) < 1e-3


@torch.no_grad()
def test_a_row_that_is_not_finite_stays_its_own() -> None:
    layer = Linear8(nn.Linear(32, 16).eval(), precision="int8")
    x = torch.randn(3, 32)
    x[1, 5] = float("inf")
    out = layer(x)
    assert out[1].isnan().all() and torch.equal(out[::2], layer(x[::2]))
    assert R.rows_int8_ref(x)[1][1].isnan()
