"""Smoothing: channels that are far larger than the others cost nothing, in every family, in place and in files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import latte_fast
from latte_fast import Latte, ops
from latte_fast.models.checkpoint import CheckpointError, read_about
from latte_fast.models.families import adapter_of
from latte_fast.modules.linear8 import Linear8, Rows8, rows8
from latte_fast.modules.residual import smoothed
from latte_fast.ops import onednn
from latte_fast.quantization.report import QuantizeReport
from latte_fast.quantization.rounding import Inputs, compensated, smoothing
from latte_fast.runs.config import TrainConfig
from latte_fast.runs.load import Trained, about_of
from latte_fast.runs.weights8 import save_8bit
from tests.helpers.tiny_latte import refilled
from tests.quantization.test_families import call, flex_model, joint_model, text_model

X, T = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([3, 500])


def with_outliers(dtype: torch.dtype = torch.float32) -> Latte:
    """The tiny model as large ones are: four channels of every norm 16 times as large, the weights as much smaller."""
    model = refilled().eval()
    with torch.no_grad():
        for block in model.blocks:
            linear, width = block.adaLN_modulation[1], block.attn.qkv.in_features
            for i, reader in ((0, block.attn.qkv), (3, block.mlp.fc1)):
                channels = torch.randperm(width)[:4]
                for part, added in ((i, 0.0), (i + 1, 15.0)):  # shift, and 1 + scale
                    linear.weight[part * width + channels] *= 16
                    linear.bias[part * width + channels] = linear.bias[part * width + channels] * 16 + added
                reader.weight[:, channels] /= 16
    return model.to(dtype)


def run(model: nn.Module, inputs: tuple = (X, T)) -> Tensor:
    dtype = next(model.parameters()).dtype
    return call(model, tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)).float()


def quantized(model: nn.Module, precision: str = "int8", inputs: tuple = (X, T), **kwargs: Any) -> QuantizeReport:
    return latte_fast.quantize(model, precision, calibrate=lambda model: run(model, inputs), **kwargs)


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def eights(model: nn.Module) -> list[Linear8]:
    return [layer for layer in model.modules() if isinstance(layer, Linear8)]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outliers_cost_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every layer, by the passes that are there without it, and gone without a trace."""
    model = with_outliers(dtype)
    before, wide = run(model), run(model.float())
    model.to(dtype)
    modules = dict(model.named_modules())
    plain = quantized(model, smooth=False)
    lost = distance(run(model), wide)
    assert all(layer.gain == 0 for layer in plain.layers.values()) and not any(
        e.input_factor is not None for e in eights(model)
    )
    latte_fast.unquantize(model)
    report = quantized(model)
    calls: list[str] = []
    for name in ("norm_modulate_int8", "gate_residual_norm_modulate_int8", "bias_gelu_int8", "rows_int8"):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, op=op, name=name, **k: (calls.append(name), op(*a, **k))[1])
    got = run(model)
    fused = "gate_residual_norm_modulate_int8"
    assert calls == ["norm_modulate_int8", fused, "bias_gelu_int8", fused, fused, "bias_gelu_int8"]
    # what 16 bits lose is lost with and without
    assert distance(got, wide) < 0.3 * lost + 1.5 * distance(before, wide)
    for name, layer in report.layers.items():
        if layer.kind in ("qkv", "fc1"):
            assert layer.snr > plain.layers[name].snr + 6 and layer.gain > 6, (name, layer, plain.layers[name])
        assert layer.kept or layer.snr > plain.layers[name].snr - 0.5
    assert "dB by smoothing" in str(report) and "dB by smoothing" not in str(plain)
    latte_fast.unquantize(model)
    assert dict(model.named_modules()) == modules and torch.equal(run(model), before)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_no_layer_loses(precision: str) -> None:
    """On what was seen: the exponent 0, which changes nothing, is among those that are tried."""
    for spread in (0.0, 1.0, 3.0):
        weight, inputs = torch.randn(32, 48), Inputs()
        x = torch.randn(400, 48) * torch.exp(spread * torch.randn(48))
        for part in x.split(50):
            inputs(nn.Identity(), (part,))
        factor, gain = smoothing(weight, inputs, precision)
        assert gain >= 0 and (factor is None) == (gain == 0)
        if spread == 3.0 and precision == "int8":
            assert gain > 6
        if factor is not None:
            assert abs(float(factor.log().mean())) < 1e-4
            rows = torch.cat(inputs.rows)
            pairs = ((rows * factor, weight / factor), (rows, weight))
            results = [[rows8(t, precision).dequantized() for t in pair] for pair in pairs]
            smooth, plain = (distance(a @ b.t(), rows @ weight.t()) for a, b in results)
            assert smooth < plain and abs(20 * math.log10(plain / smooth) - gain) < 1e-3


def test_rows_are_kept_of_all_calls() -> None:
    """Of a long sampling as of a short one: at most 32 calls, from its first step to its last."""
    inputs = Inputs()
    for i in range(200):
        inputs(nn.Identity(), (torch.full((3, 4), float(i)),))
    seen = [float(rows[0, 0]) for rows in inputs.rows]
    assert (
        16 <= len(seen) < 32 and seen[0] == 0 and seen[-1] > 180 and len(set(torch.tensor(seen).diff().tolist())) == 1
    )
    assert inputs.gram is not None and float(inputs.gram[0, 0]) == 3 * sum(i * i for i in range(200))


@torch.no_grad()
def test_a_channel_that_is_never_seen() -> None:
    weight, inputs = torch.randn(16, 48), Inputs()
    x = torch.randn(100, 48)
    x[:, 5], weight[:, 7] = 0, 0
    inputs(nn.Identity(), (x,))
    factor, _ = smoothing(weight, inputs, "int8")
    assert factor is not None and factor.isfinite().all() and float(factor.max() / factor.min()) < 1e4
    values, scale = compensated(weight / factor, inputs.gram * factor * factor[:, None], "int8")
    assert distance(x @ (values.float() * scale * factor).t(), x @ weight.t()) < 0.02


# of FlexDiT all MLPs, and the qkv of its S and D blocks; the text model's q, k and v have one factor
@torch.no_grad()
@pytest.mark.parametrize("make", [text_model, pytest.param(flex_model, marks=pytest.mark.slow), joint_model])
def test_families(make: Any) -> None:
    model, inputs = make()
    want = run(model, inputs)
    errors = {}
    for smooth in (False, True):
        report = quantized(model, inputs=inputs, smooth=smooth)
        errors[smooth] = distance(run(model, inputs), want)
        assert any(layer.gain for layer in report.layers.values()) == smooth
        if smooth and make is text_model:
            three = [model.transformer_blocks[0].attn1.get_submodule(n).input_factor for n in ("to_q", "to_k", "to_v")]
            assert three[0] is not None and all(torch.equal(f, three[0]) for f in three)
        latte_fast.unquantize(model)
        assert torch.equal(run(model, inputs), want)
    assert errors[True] < errors[False] < 0.02, errors


@torch.no_grad()
def test_onednn_has_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "served", lambda: onednn.Served(None, True))
    model = with_outliers(torch.bfloat16)
    before = run(model)
    quantized(model)
    got = run(model)
    assert sum("weight" not in m._buffers for m in eights(model)) > 5
    monkeypatch.setattr(onednn, "served", lambda: onednn.Served("there is no VNNI"))
    want = run(model)
    assert 0 < distance(got, want) < 0.5 * distance(want, before) + 0.01


def test_a_modulation_keeps_fp32() -> None:
    """16 bits of (1 + scale) * factor - 1 would lose more than the rounding to 8 bits."""
    layer = Linear8(nn.Linear(48, 32).eval(), precision="int8", input_factor=torch.rand(48) + 0.01)
    shift, scale = torch.randn(2, 3, 48).bfloat16()
    wanted = shift.double() * layer.input_factor, (1 + scale.double()) * layer.input_factor - 1
    for got, want in zip(smoothed(shift, scale, (layer,)), wanted, strict=True):
        assert got.dtype == torch.float32 and float((got - want).abs().max()) < 1e-6
    layer.input_factor = None
    assert smoothed(shift, scale, (layer,)) == (shift, scale)


@torch.no_grad()
def test_rows_that_a_layer_rounds_itself() -> None:
    """A tensor is multiplied by the factor, Rows8 have it in them; casts leave it as it is, moves take it along."""
    linear, factor = nn.Linear(48, 32).eval(), torch.rand(48) + 0.5
    layer = Linear8(linear, rounded=rows8(linear.weight / factor, "int8")[:2], precision="int8", input_factor=factor)
    x = torch.randn(5, 48)
    got = layer(x)
    assert distance(got, linear(x)) < 0.02 and torch.equal(got, layer(rows8(x * factor, "int8")))
    assert layer.rows_of(x.bfloat16()).dtype == torch.bfloat16
    rows = rows8(x.bfloat16() * factor, "int8")
    assert torch.equal(layer(x.bfloat16()), layer(Rows8(rows.values, rows.scale, torch.bfloat16)))
    assert torch.equal(layer.bfloat16().input_factor, factor) and layer.double().input_factor.dtype == torch.float32
    assert layer.to("meta").input_factor.is_meta


@torch.no_grad()
@pytest.mark.parametrize("make", [with_outliers, text_model], ids=["latte", "text"])
def test_files(make: Any, tmp_path: Path) -> None:
    made = make()
    model, inputs = made if isinstance(made, tuple) else (made, (X, T))
    quantized(model, inputs=inputs)
    want, file = run(model, inputs), tmp_path / "int8.safetensors"
    save_8bit(model, file, about_of(Trained(model, adapter_of(model), TrainConfig(), 0)))
    loaded = latte_fast.load(file).model
    assert torch.equal(run(loaded, inputs), want)
    factors = [name for name in load_file(file) if name.endswith("input_factor")]
    assert len(factors) == sum(e.input_factor is not None for e in eights(loaded)) > 4

    def edited(change: Any) -> Path:
        state = load_file(file)
        change(state[factors[0]])
        save_file(state, file.with_name("edited.safetensors"), metadata={
            "format": "pt", "latte_fast": json.dumps(read_about(file))})  # fmt: skip
        return file.with_name("edited.safetensors")

    for wrong in (0.0, float("nan"), -1.0):
        with pytest.raises(CheckpointError, match="input_factor must be positive, finite fp32 numbers"):
            latte_fast.load(edited(lambda t, wrong=wrong: t.__setitem__(3, wrong)))
    if make is text_model:
        with pytest.raises(CheckpointError, match="q, k and v that read one input must have one input_factor"):
            latte_fast.load(edited(lambda t: t.mul_(2)))


@torch.no_grad()
def test_who_is_smoothed() -> None:
    """int8 that is calibrated, by default; fp8 where it is asked for; nothing without inputs."""
    model = with_outliers()
    for precision, asked, expected in (("int8", None, True), ("fp8", None, False), ("fp8", True, True)):
        report = quantized(model, precision, smooth=asked)
        assert any(e.input_factor is not None for e in eights(model)) == expected
        assert all(layer.snr > 20 for layer in report.layers.values() if not layer.kept)
        latte_fast.unquantize(model)
    latte_fast.quantize(model, "int8")
    assert not any(e.input_factor is not None for e in eights(model))
    latte_fast.unquantize(model)
    with pytest.raises(ValueError, match="quantize: smooth must be False without calibrate"):
        latte_fast.quantize(model, "int8", smooth=True)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_to_one_graph() -> None:
    model = with_outliers()
    quantized(model)
    want = run(model)
    torch._dynamo.reset()
    assert distance(torch.compile(model, fullgraph=True, backend="eager")(X, T), want) < 1e-3
