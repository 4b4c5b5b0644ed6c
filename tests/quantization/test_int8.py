"""int8 weights of a token transformer: how they are rounded, what decoding makes of them, their files, the way back."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import latte_fast
from latte_fast import TokenTransformer
from latte_fast.models.checkpoint import CheckpointError, read_about
from latte_fast.models.tats.decoder import Decoder, causal_context
from latte_fast.modules.linear_int8 import LinearInt8, rounded_int8
from latte_fast.runs.config import TrainConfig
from latte_fast.runs.tokens import TokenLayout, TrainedTokens, about_tokens, is_token_run, load_tokens
from latte_fast.runs.weights8 import save_8bit
from latte_fast.token_films.draw import Drawing
from latte_fast.token_films.greedy import Greedy
from latte_fast.token_films.steps import Steps
from tests.helpers.counting import Count
from tests.helpers.guards import require_backend
from tests.helpers.tiny_tokens import CODES, CONDITIONS, TINY, pair, tokens


@pytest.fixture
def model() -> TokenTransformer:
    return pair()[0]


def trained(model: TokenTransformer, gap: bool = False) -> TrainedTokens:
    layout = TokenLayout(5 if gap else 4, 2, CODES, CONDITIONS, 1, gap, "0123456789abcdef", 2, 4)
    return TrainedTokens(model, layout, ["a", "b", "c"], TrainConfig(objective="tokens"), 7)


def test_rounding() -> None:
    """Against float64: the nearest integer, ties to even, all of the range used; rows of zeros, tiny and huge rows."""
    weight = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    weight[0], weight[1], weight[2] = 0, weight[1] * 1e-28, weight[2] * 1e37
    # the maximum is 127 steps of 0.5: ties at odd quarters
    weight[3] = 0.5 * (torch.arange(300) % 128 - 0.5).clamp(-126.5, 126.5)
    weight[3, 0] = -63.5
    values, scale = rounded_int8(weight)
    want = weight.double().abs().amax(1) / 127
    assert ((scale.double() - want).abs()[1:] <= 2**-23 * want[1:]).all() and scale[0] == 2.0**-100
    assert not rounded_int8(weight[4:] * 1e-35)[0].any()  # below the least scale
    assert values.dtype == torch.int8 and not values[0].any() and (values[1:].abs().amax(1) == 127).all()
    exact = weight.double() / scale.double()[:, None]
    assert ((values.double() - exact).abs() <= 0.5 + 1e-5).all()
    assert torch.equal(values[3], (2 * weight[3]).round().to(torch.int8)) and (values[3, 2:127] % 2 == 0).all()


@torch.no_grad()
def test_forward_and_the_way_back(model: TokenTransformer) -> None:
    """The forward is that of a copy with the rounded weights; what comes back is bit for bit what was."""
    state = {name: x.clone() for name, x in model.state_dict().items()}
    before, x = dict(model.named_modules()), tokens()
    oracle = copy.deepcopy(model)
    for layer in oracle.modules():
        if type(layer) is torch.nn.Linear:
            values, scale = rounded_int8(layer.weight)
            layer.weight.copy_(values * scale[:, None])
    want, plain = oracle(x), model(x)
    report = latte_fast.quantize(model, "int8")
    assert len(report.taken) == 13 and not report.kept and 0 < max(r.error for r in report.layers.values()) < 0.02
    assert report.before == 4 * report.beside // 4 and report.after < report.before / 3
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
    assert 1e-3 < float((want - plain).norm() / plain.norm()) < 0.03
    # 9 rows or more by a plain product, fewer by the op that reads the weight once
    torch.testing.assert_close(model(x[:, :3]), want[:, :3], rtol=1e-4, atol=1e-4)
    targets = tokens(2, 10, 3)
    losses = torch.nn.functional.cross_entropy(want[:, 4:14].movedim(-1, 1), targets, reduction="none")
    torch.testing.assert_close(model(x, targets, 4), losses, rtol=1e-4, atol=1e-4)
    latte_fast.unquantize(model)
    assert dict(model.named_modules()) == before and torch.equal(model(x), plain)
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_decoding(model: TokenTransformer, dtype: torch.dtype) -> None:
    """Each step is the whole forward's row, in five ops a block, which read int8."""
    model.to(dtype)
    latte_fast.quantize(model, "int8")
    whole = model(tokens(2, 12))
    decoder = Decoder(model, 2, 24)
    got = [decoder.start(causal_context(tokens(2, 12)[:, :5]))]
    for i in range(5, 11):
        got.append(decoder.step(tokens(2, 12)[:, i]))
    limit = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float64: 1e-10}[dtype]
    error = max(float((a - whole[:, i]).abs().max()) for i, a in enumerate(got, 4)) / float(whole.abs().max())
    assert error < limit
    if dtype == torch.float64:
        return
    require_backend("small_linear", torch.zeros(2, 16), torch.zeros(3, 16))
    with Count() as count:
        decoder.step(torch.zeros(2, dtype=torch.int64))
    assert count.ran["small_linear"] == 4 * TINY["n_layer"] + 1 and not count.copies
    read = [t for layer in decoder.layers for t in (layer[0][0], layer[1][0][0], layer[2][0], layer[3][0][0])]
    assert decoder.plain and {t.dtype for t in (*read, decoder.head[0])} == {torch.int8}


def test_what_changes_later_is_seen(model: TokenTransformer) -> None:
    """A decoder and a loop of steps made before: quantised, brought back, hooked, and in autocast."""
    steps, decoder = Steps(model, 2, CONDITIONS, CODES, Drawing(0.0)), Decoder(model, 2, 24)
    context, shares = causal_context(tokens(2, 5)), torch.rand(2, 6, dtype=torch.float64)
    first, drawn = decoder.start(context), steps.draw(context, shares, lambda n: None)
    latte_fast.quantize(model, "int8")
    with torch.no_grad():
        want = model(tokens(2, 5))[:, -1]
        torch.testing.assert_close(decoder.start(context), want, rtol=1e-5, atol=1e-5)
        assert not torch.equal(want, first) and steps.draw(context, shares, lambda n: None).shape == drawn.shape
        assert steps.decoder.head[0].dtype == torch.int8
        held, key = [*model.buffers()], steps._weights()
        latte_fast.unquantize(model)
        latte_fast.quantize(model, "int8")
        assert steps._weights() != key and len(held) == 26
        with torch.autocast("cpu", torch.bfloat16):
            assert model(tokens(2, 5)).dtype == decoder.start(context).dtype == torch.bfloat16
        handle = model.blocks[0].attn.key.register_forward_hook(lambda module, args, out: 2 * out)
        hooked = model(torch.cat([tokens(2, 5), tokens(2, 1)], 1))[:, -1]
        decoder.start(context)
        torch.testing.assert_close(decoder.step(tokens(2, 1)[:, 0]), hooked, rtol=1e-4, atol=1e-4)
        handle.remove()
    latte_fast.unquantize(model)
    assert torch.equal(decoder.start(context), first)
    assert torch.equal(steps.draw(context, shares, lambda n: None), drawn)


@torch.no_grad()
def test_a_layer_that_keeps_16_bits_beside_others(model: TokenTransformer) -> None:
    """A hooked query leaves query, key and value to be called one by one."""
    handle = model.blocks[0].attn.query.register_forward_hook(lambda module, args, out: out)
    want = model(tokens())
    report = latte_fast.quantize(model, "int8")
    assert list(report.kept) == ["blocks.0.attn.query"] and len(report.taken) == 12
    handle.remove()
    assert 1e-3 < float((model(tokens()) - want).norm() / want.norm()) < 0.03
    decoder = Decoder(model, 2, 24)
    decoder.start(causal_context(tokens(2, 6)[:, :5]))
    torch.testing.assert_close(decoder.step(tokens(2, 6)[:, 5]), model(tokens(2, 6))[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gap", [False, True])
def test_greedy_says_what_changed(gap: bool) -> None:
    # a gap of three frames of 4 codes between two; without one a clip of 16
    model = pair(block_size=20, n_unmasked=4)[0] if gap else pair(block_size=16)[0]
    run = trained(model, gap)
    greedy = Greedy(run, 3, seed=1)
    same = greedy.changed()
    count = 12 if gap else 16
    assert same.same == 1 and same.first == [count] * 3 and same.count == count and same.snr > 200
    report = latte_fast.quantize(model, "int8")
    assert len(report.taken) == 13
    after = greedy.changed()
    assert 20 < after.snr < 60 and 0.7 < after.same <= 1 and all(0 <= n <= count for n in after.first)
    assert f"{after.snr:.1f} dB" in str(after) and "for " + ", ".join(map(str, after.first)) in str(after)


def test_casts_and_refusals(model: TokenTransformer) -> None:
    with pytest.raises(ValueError, match=r"TokenTransformer has no linear layers .* 8 bits wide; it takes int8"):
        latte_fast.quantize(model, "fp8")
    with pytest.raises(ValueError, match="layers must be some of qkv, proj, fc1, fc2, head, got heads"):
        latte_fast.quantize(model, "int8", layers=("heads",))
    with pytest.raises(ValueError, match="calibrate must be None for int8"):
        latte_fast.quantize(model, "int8", calibrate=lambda m: m)
    model.head.weight.data[3, 2] = float("inf")
    report = latte_fast.quantize(model, "int8", layers=("head", "fc1"))
    assert report.kept["head"] == "its weight has numbers that are not finite" and len(report.taken) == 2
    layer: Any = model.blocks[0].mlp[0]
    values, scale = layer.weight.clone(), layer.weight_scale.clone()
    for cast in (lambda m: m.bfloat16(), lambda m: m.double(), copy.deepcopy):
        layer = cast(model).blocks[0].mlp[0]
        assert torch.equal(layer.weight, values) and torch.equal(layer.weight_scale, scale)
    with pytest.raises(ValueError, match="has 8-bit layers already"):
        latte_fast.quantize(model, "int8")
    with pytest.raises(ValueError, match="has no gradient"):
        model(tokens())
    with pytest.raises(RuntimeError, match="8-bit layers do not train"), torch.no_grad():
        model.train()(tokens())


@pytest.fixture
def file(model: TokenTransformer, tmp_path: Path) -> Path:
    latte_fast.quantize(model, "int8", keep=False)
    save_8bit(model, tmp_path / "eight.safetensors", about_tokens(trained(model)))
    return tmp_path / "eight.safetensors"


@torch.no_grad()
def test_files(model: TokenTransformer, file: Path) -> None:
    assert is_token_run(file)
    loaded = load_tokens(file)
    assert loaded.step == 7 and loaded.classes == ["a", "b", "c"] and loaded.layout == trained(model).layout
    assert torch.equal(loaded.model(tokens()), model(tokens())) and not loaded.model.training
    assert sum(type(layer) is LinearInt8 for layer in loaded.model.modules()) == 13
    with pytest.raises(ValueError, match="`latte-fast sample` take a token transformer's run"):
        latte_fast.load(file)
    with pytest.raises(ValueError, match=r"precision must be left out for .*, whose weights have 8 bits"):
        load_tokens(file, precision="int8")
    with pytest.raises(ValueError, match="were not kept; load the model again"):
        latte_fast.unquantize(loaded.model)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s, a: s["head.weight_scale"].__setitem__(3, 0.0), r"head\.weight_scale must be positive, finite"),
        (lambda s, a: s.__setitem__("head.weight", s["head.weight"].short()), "must be of int8, found torch.int16"),
        (lambda s, a: a["model"].__setitem__("n_embd", 32), "must have shape"),
        (lambda s, a: a.pop("layout"), "must say what the tokens stand for, got no layout"),
        (lambda s, a: a.__setitem__("precision", "fp8"), "must be of float8_e4m3fn, found torch.int8"),
        (lambda s, a: a.__setitem__("precision", "int4"), "must be fp8 or int8 with a list of layers"),
    ],
)  # fmt: skip
def test_bad_files(file: Path, change: Any, match: str) -> None:
    state, about = load_file(file), read_about(file)
    change(state, about)
    save_file(state, file, metadata={"format": "pt", "latte_fast": json.dumps(about)})
    with pytest.raises(CheckpointError, match=match):
        load_tokens(file)
