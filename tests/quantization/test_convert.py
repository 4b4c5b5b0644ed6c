"""quantize: which layers become 8-bit and why others do not, what the model computes then, and the way back."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latte_fast
from latte_fast import Latte, ops, testing
from latte_fast.modules import linear8
from latte_fast.modules.linear8 import Linear8, Rows8, product, rows8
from latte_fast.quantization import convert
from tests.helpers.tiny_latte import KEYWORDS, refilled

X, T = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([3, 500])


@pytest.fixture
def model() -> Latte:
    return refilled().eval()


@torch.no_grad()
def error(model: nn.Module, want: Tensor, *inputs: Any) -> float:
    got = model(*inputs)
    return float((got - want).norm() / want.norm())


def emulated(model: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    """The oracle: a copy whose layers round their weight's and input's rows in a hook, and multiply in fp32."""
    model = copy.deepcopy(model)

    def rounded(x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 448
        return (x / scale).to(torch.float8_e4m3fn).float() * scale

    for name, layer in model.named_modules():
        if name.split(".")[-1] in layers and "blocks" in name:
            layer.weight.data = rounded(layer.weight.data)
            layer.register_forward_pre_hook(lambda layer, args: (rounded(args[0]), *args[1:]))
    return model


@torch.no_grad()
@pytest.mark.parametrize("layers", [("qkv", "fc1", "fc2"), ("fc1",), ("fc2",), ("qkv", "proj")], ids=str)
@pytest.mark.parametrize("variant", [1, 3, 4])
def test_forward_is_that_of_rounded_layers(layers: tuple[str, ...], variant: int) -> None:
    torch.manual_seed(0)
    model = testing.refill(Latte(**KEYWORDS | {"variant": variant})).eval()
    before = model(X, T)
    oracle = emulated(model, layers)(X, T)
    latte_fast.quantize(model, "fp8", layers=layers)
    # fp32 sums of another order move few values over the edge of a step, each by a step
    distance = float((oracle - before).norm() / before.norm())
    assert 2e-3 < distance < 0.1
    assert error(model, oracle, X, T) < 0.35 * distance


@torch.no_grad()
def test_back_is_bit_for_bit(model: Latte) -> None:
    state = {name: x.clone() for name, x in model.state_dict().items()}
    modules = dict(model.named_modules())
    before = model(X, T)
    report = latte_fast.quantize(model, "fp8")
    assert len(report.taken) == 6 and not torch.equal(model(X, T), before)
    latte_fast.unquantize(model)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert torch.equal(model(X, T), before)
    with pytest.raises(ValueError, match="unquantize: model has no 8-bit layers"):
        latte_fast.unquantize(model)


@torch.no_grad()
def test_norms_and_gelu_leave_8_bits(model: Latte, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass that only rounds: qkv's and fc1's rows come from the norms, fc2's from GELU; proj would need one."""
    calls: list[str] = []
    for name in ("rows_fp8", "norm_modulate_fp8", "gate_residual_norm_modulate_fp8", "bias_gelu_fp8"):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, op=op, name=name, **k: (calls.append(name), op(*a, **k))[1])
    latte_fast.quantize(model, "fp8")
    calls.clear()
    model(X, T)
    fused = "gate_residual_norm_modulate_fp8"
    assert calls == ["norm_modulate_fp8", fused, "bias_gelu_fp8", fused, fused, "bias_gelu_fp8"]
    latte_fast.unquantize(model)
    latte_fast.quantize(model, "fp8", layers=linear8_kinds())
    calls.clear()
    model(X, T)
    assert calls.count("rows_fp8") == 2


def linear8_kinds() -> tuple[str, ...]:
    return convert.KINDS["products"]


def test_what_keeps_16_bits(model: Latte) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear):
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x)

    class Sharded(nn.Parameter):
        pass

    blocks = model.blocks
    blocks[0].attn.qkv = Adapted(blocks[0].attn.qkv)
    blocks[0].mlp.fc1.register_forward_hook(lambda *a: None)
    blocks[0].mlp.fc2.weight = Sharded(blocks[0].mlp.fc2.weight.data)
    blocks[1].mlp.fc2.weight.data[0, 0] = float("nan")
    report = latte_fast.quantize(model, "fp8")
    assert report.taken == ["blocks.1.attn.qkv", "blocks.1.mlp.fc1"]
    assert report.kept["blocks.0.attn.qkv"] == "it is a Adapted, not a plain linear layer"
    assert report.kept["blocks.0.mlp.fc1"] == "it has hooks or a forward of its own"
    assert report.kept["blocks.0.mlp.fc2"] == "its weight is a Sharded, sharded or stored in another form"
    assert report.kept["blocks.1.mlp.fc2"] == "its weight has numbers that are not finite"
    assert report.kept["blocks.1.attn.proj"] == "proj is not among the layers asked for"
    assert "2 layers in 8 bits, 6 in 16" in str(report)


@torch.no_grad()
def test_hooks_beside_8_bit_layers_see_tensors(model: Latte) -> None:
    """A hook on the attention, or on a layer that was quantised before, gets 16-bit rows; the numbers stay near."""
    latte_fast.quantize(model, "fp8")
    want = model(X, T)
    seen: list[Any] = []
    handles = [
        part.register_forward_hook(lambda m, args, out: seen.append(args[0]))
        for part in (model.blocks[0].attn, model.blocks[0].mlp, model.blocks[1].attn.qkv, model.blocks[1].mlp.fc2)
    ]
    assert error(model, want, X, T) < 5e-3
    assert len(seen) == 4 and all(type(x) is Tensor for x in seen)
    for handle in handles:
        handle.remove()
    assert torch.equal(model(X, T), want)


@torch.no_grad()
def test_products_are_exact() -> None:
    """Against float64 on the same 8-bit operands; a bias; rows of any number."""
    layer = Linear8(nn.Linear(48, 32).eval())
    x = torch.randn(3, 7, 48)
    rows = rows8(x)
    exact = (rows.values.double() * rows.scale) @ (layer.weight.double() * layer.weight_scale[:, None]).t()
    for bias, want in ((None, exact), (layer.bias, exact + layer.bias.double())):
        got = product(rows, layer.weight, layer.weight_scale, bias)
        assert testing.relative_error(got, want) < 1e-6
    assert torch.equal(layer(x), product(rows, layer.weight, layer.weight_scale, layer.bias))
    assert layer(Rows8(rows.values, rows.scale, torch.bfloat16)).dtype == torch.bfloat16


def test_gpu_products_ask_for_rows_scales_and_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call as a GPU gets it, by a stand-in that multiplies: filled rows are cut off again."""
    seen: dict[str, Any] = {}

    def stand_in(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, **given: Any) -> Tensor:
        seen.update(given, rows=a.shape[0], shapes=(scale_a.shape, scale_b.shape), column=b.stride(0) == 1)
        out = (a.float() * scale_a) @ (b.float() * scale_b)
        return (out if given["bias"] is None else out + given["bias"].float()).to(given["out_dtype"])

    monkeypatch.setattr(torch, "_scaled_mm", stand_in)
    layer = Linear8(nn.Linear(48, 32).eval())
    rows = rows8(torch.randn(21, 48))
    want = product(rows, layer.weight, layer.weight_scale, layer.bias)
    for fits in (True, False):
        monkeypatch.setattr(linear8, "bias_fits", lambda device, fits=fits: fits)
        got = linear8._on_tensor_cores(rows.values, rows.scale, layer.weight, layer.weight_scale, layer.bias)
        assert got.shape == (21, 32) and testing.relative_error(got, want) < 1e-2
        assert (seen["bias"] is None) != fits and seen["use_fast_accum"] and seen["out_dtype"] == torch.bfloat16
        assert seen["rows"] == 32 and seen["shapes"] == ((32, 1), (1, 32)) and seen["column"]


def test_casts_and_copies_leave_8_bits_alone(model: Latte) -> None:
    latte_fast.quantize(model, "fp8")
    layer = model.blocks[0].attn.qkv
    values, scale = layer.weight.clone().view(torch.uint8), layer.weight_scale.clone()
    for cast in (lambda m: m.bfloat16(), lambda m: m.to(torch.float64), copy.deepcopy):
        model = cast(model)
        layer = model.blocks[0].attn.qkv
        assert layer.weight.dtype == linear8.FP8 and torch.equal(layer.weight.view(torch.uint8), values)
        assert layer.weight_scale.dtype == torch.float32 and torch.equal(layer.weight_scale, scale)
    assert layer.bias.dtype == layer.before.weight.dtype == torch.float64
    assert layer.bias is layer.before.bias


def test_refusals(model: Latte, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="quantize: dtype must be one of fp8, int8, got 'fp4'"):
        latte_fast.quantize(model, "fp4")
    with pytest.raises(ValueError, match="layers must be some of qkv, proj, fc1, fc2, got fc3"):
        latte_fast.quantize(model, layers=("fc3",))
    with pytest.raises(ValueError, match="has no linear layers that may be 8 bits wide"):
        latte_fast.quantize(nn.Linear(16, 16).eval())
    with pytest.raises(ValueError, match="eval mode"):
        latte_fast.quantize(model.train())
    latte_fast.quantize(model.eval(), keep=False)
    with pytest.raises(ValueError, match="has 8-bit layers already"):
        latte_fast.quantize(model)
    with pytest.raises(ValueError, match=r"the 16-bit weights of blocks.0.attn.qkv were not kept"):
        latte_fast.unquantize(model)
    with pytest.raises(ValueError, match="has no gradient"):
        model(X, T)
    with pytest.raises(RuntimeError, match="8-bit layers do not train"), torch.no_grad():
        model.train()(X, T)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    assert convert.why_no_products(torch.device("cuda")) == (
        "fp8 needs a GPU of compute capability 8.9 or more, A100 has 8.0"
    )


@torch.no_grad()
def test_compiles_to_one_graph(model: Latte) -> None:
    latte_fast.quantize(model, "fp8")
    want = model(X, T)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert error(compiled, want, X, T) < 1e-5


def test_layers_that_a_plain_product_disagrees_with(model: Latte) -> None:
    """A weight scaled by a number a tensor would lose a channel that is small; one a channel keeps it."""
    layer = nn.Linear(64, 32).eval()
    with torch.no_grad():
        layer.weight[3] *= 1e-4
        eight = Linear8(layer)
        x = torch.randn(5, 64)
        want, got = F.linear(x, layer.weight[3:4]), eight(x)[:, 3:4] - layer.bias[3]
    assert float((got - want).norm() / want.norm()) < 0.1
