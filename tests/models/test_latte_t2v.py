"""The fast text-to-video model against its oracle: forward, gradients, masks, joint images, compile, bad input."""

from typing import Any

import pytest
import torch
from torch import nn

from latte_fast import LatteT2V, reference, testing
from latte_fast.modules.embed import stretch_time, time_table
from tests.helpers.counting import Count
from tests.helpers.meta import on_meta
from tests.helpers.t2v import CASES, SMALL, assert_gradients, gradients, inputs, pair


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("frames", "height", "width", "over_time"), CASES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.float64, 1e-11)], ids=str)
def test_latte_t2v_equals_oracle(
    dtype: torch.dtype, limit: float, frames: int, height: int, width: int, over_time: bool, masked: bool
) -> None:
    oracle, fast = pair(dtype)
    x, t, text, mask = inputs(frames, height, width, dtype=dtype)
    args = (x, t, text, mask if masked else None, over_time)
    exact = oracle(*args)
    for model in (fast, fast.eval()):
        assert testing.relative_error(model(*args).sample, exact) <= limit
    assert_gradients(gradients(oracle, exact), gradients(fast, fast(*args, return_dict=False)[0]), limit)


@pytest.mark.parametrize("recompute", ["none", "elementwise", "mlp", "block"])
@pytest.mark.parametrize("frames", [3, 1])
def test_joint_images(frames: int, recompute: str) -> None:
    oracle, fast = pair(torch.float64)
    fast.recompute = recompute
    x, t, text, mask = inputs(frames, 8, 8, images=2, dtype=torch.float64)
    exact = oracle(x, t, text, mask, use_image_num=2)
    got = fast(x, t, text, mask, use_image_num=2).sample
    assert testing.relative_error(got, exact) <= 1e-11
    assert_gradients(gradients(oracle, exact), gradients(fast, got), 1e-11)


def test_gradient_checkpointing_is_the_block_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, seen = LatteT2V(**SMALL), []

    def record(policy: str, block: nn.Module, *args: Any) -> Any:
        seen.append(policy)
        return block(*args)

    monkeypatch.setattr("latte_fast.models.latte_t2v.model.run_block", record)
    for turn in (fast.enable_gradient_checkpointing, fast.disable_gradient_checkpointing):
        turn()
        fast(*inputs(3, 8, 8))
    assert seen == ["block"] * 4 + ["none"] * 4


def test_16_bit_by_the_criterion() -> None:
    oracle, fast = pair(attention_bias=False)
    x, t, text, mask = inputs(3, 8, 8)
    with torch.no_grad():
        exact = oracle(x, t, text, mask)
        for dtype in (torch.bfloat16, torch.float16):
            args = (x.to(dtype), t, text.to(dtype), mask)
            same = oracle.to(dtype)(*args)
            testing.assert_no_worse_than_torch(str(dtype), fast.to(dtype)(*args).sample, same, exact)


def test_autocast_trains() -> None:
    _, fast = pair()
    x, t, text, mask = inputs(3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = fast(x, t, text, mask).sample
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fast.parameters())


def test_masks_of_all_documented_forms() -> None:
    _, fast = pair(torch.float64)
    x, t, text, mask = inputs(3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        want = fast(x, t, text, mask).sample
        bias = (1 - mask.double())[:, None] * -10000.0
        for form in (mask.long(), mask.double(), bias, mask[:, None]):
            assert torch.equal(fast(x, t, text, form).sample, want)
        shorter = fast(x[:1], t[:1], text[:1, mask[0]]).sample
        assert testing.relative_error(want[:1], shorter) <= 1e-11
        assert testing.relative_error(fast(x, t, text).sample, want) > 1e-3


@torch.no_grad()
def test_a_mask_of_floats_is_read_once() -> None:
    """On a GPU every reading is a wait; a mask written since is read again."""
    x, t, text, mask = inputs(3, 8, 8)
    fast, mask = LatteT2V(**SMALL).eval(), mask.float()
    with Count() as count:
        fast(x, t, text, mask), fast(x, t, text, mask)
        assert count.ran["lt"] == 1
        fast(x, t, text, mask.mul_(1))
        assert count.ran["lt"] == 2
    with pytest.raises(ValueError, match="got negative values"):
        fast(x, t, text, mask.sub_(1))
    with torch.inference_mode(), pytest.raises(ValueError, match="got negative values"):
        fast(x, t, text, mask.clone())


@torch.no_grad()
def test_a_time_may_be_a_number_or_one_of_all() -> None:
    fast = LatteT2V(**SMALL).eval()
    x, _, text, mask = inputs(3, 8, 8)
    want = fast(x, torch.tensor([7, 7]), text, mask).sample
    for t in (7, 7.0, torch.tensor(7), torch.tensor([7]), torch.tensor([7.0, 7.0])):
        assert torch.equal(fast(x, t, text, mask).sample, want)
    assert not torch.equal(fast(x, torch.tensor([7, 8]), text, mask).sample[1], want[1])


def test_table_extends_to_any_frames() -> None:
    oracle, fast = pair(torch.float64, video_length=5)
    x, t, text, _ = inputs(5, 8, 8, dtype=torch.float64)
    longer = LatteT2V(**SMALL | {"video_length": 3}, extend_time="sincos").double()
    longer.load_state_dict(fast.state_dict())
    assert testing.relative_error(longer(x, t, text).sample, oracle(x, t, text)) <= 1e-11
    longer.extend_time = "interpolate"
    stretched = stretch_time(time_table(72, 3), 5).transpose(0, 1)
    assert torch.equal(longer.time_positions(72, 5, x), stretched.double())
    assert longer(x, t, text).sample.isfinite().all()


def test_published_model_has_the_published_keys() -> None:
    with on_meta():
        fast, oracle = LatteT2V(), reference.latte_t2v.LatteT2V()
    state = fast.state_dict()
    assert len(state) == 967
    assert sum(v.numel() for v in state.values()) == 1_057_246_880
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in oracle.state_dict().items()}


def test_compiles_without_graph_break() -> None:
    oracle, fast = pair()
    x, t, text, mask = inputs(3, 8, 8)
    exact = oracle(x, t % 10, text, mask)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    out = compiled(x, t % 10, text, mask, return_dict=False)[0]
    assert testing.relative_error(out, exact) <= 3e-6
    assert_gradients(gradients(oracle, exact), gradients(fast, out), 2e-5)


BAD = {
    "channels": ({"x": (2, 3, 3, 8, 8)}, "hidden_states must have C = 4 channels, got 3"),
    "frames": ({"x": (2, 4, 2, 8, 8)}, "hidden_states must have F = 3 video frames as the model's table, or 1"),
    "size": ({"x": (2, 4, 3, 8, 7)}, "hidden_states must have W a positive multiple of the patch 2, got 7"),
    "text": ({"text": (2, 7, 41)}, r"encoder_hidden_states must be \(B, T, 40\) with B = 2"),
    "no text": ({"text": None}, "encoder_hidden_states must be given, got None"),
    "mask": ({"mask": (2, 6)}, r"encoder_attention_mask must be \(2, 7\), 1 where a token counts"),
    "bias": ({"mask": torch.full((2, 7), -1e4)}, "encoder_attention_mask .* got negative values; a bias is"),
    "time": (
        {"t": torch.tensor([1, 2, 3])},
        r"timestep must be a number, \(1,\), \(B,\) or \(B, F\) with B = 2 and F = 3, got \(3,\)",
    ),
    "no time": ({"t": None}, "timestep must be a number, .*got NoneType"),
    "rank": ({"x": (2, 4, 8, 8)}, r"hidden_states must be \(B, C, F, H, W\), got \(2, 4, 8, 8\)"),
    "text batch": ({"text": (1, 7, 40)}, r"encoder_hidden_states must be \(B, T, 40\) with B = 2, got \(1, 7, 40\)"),
    "no tokens": ({"text": (2, 0, 40)}, r"encoder_hidden_states must be .* got \(2, 0, 40\)"),
    "one caption": ({"x": (2, 4, 5, 8, 8), "text": (2, 7, 40), "use_image_num": 2}, r"must be \(B, 1 \+ n, T, 40\)"),
    "captions": ({"x": (2, 4, 5, 8, 8), "text": (2, 2, 7, 40), "use_image_num": 2}, r"must be \(B, 1 \+ n, T, 40\)"),
    "as many tokens": ({"x": (2, 4, 5, 8, 8), "text": (2, 3, 40), "use_image_num": 2}, r"must be \(B, 1 \+ n, T, 40\)"),
    "captions of no images": ({"text": (2, 3, 7, 40)}, r"encoder_hidden_states must be \(B, T, 40\) with B = 2, got"),
    "bare text": ({"text": (2, 40)}, r"encoder_hidden_states must be \(B, T, 40\) with B = 2, got \(2, 40\)"),
    "negative": ({"use_image_num": -1}, "use_image_num must leave at least one of the 3 frames, got -1"),
    "images": ({"use_image_num": 3}, "use_image_num must leave at least one of the 3 frames, got 3"),
    "dtype": ({"dtype": torch.float64}, "hidden_states must have the weights' dtype torch.float32"),
}


@torch.no_grad()
def test_masks_of_all_kinds_are_one() -> None:
    """(B, T) as bool, numbers, integers; (B, 1, T) as bool, integers and the bias of floating numbers."""
    fast = LatteT2V(**SMALL).eval()
    x, t, text, mask = inputs(3, 8, 8)
    want = fast(x, t, text, mask.bool()).sample
    assert (want - fast(x, t, text).sample).abs().max() > 1e-4
    three = mask[:, None]
    for same in (mask.float(), mask.long(), three.bool(), three.long(), (1 - three.float()) * -10000.0):
        assert torch.equal(fast(x, t, text, same).sample, want)


@torch.no_grad()
@pytest.mark.parametrize("name", ["recompute", "extend_time"])
def test_an_attribute_that_is_no_choice_is_refused(name: str) -> None:
    fast = LatteT2V(**SMALL).eval()
    setattr(fast, name, "sincoz")
    x, t, text, _ = inputs(3, 8, 8)
    with torch.enable_grad(), pytest.raises(ValueError, match=f"{name} must be one of .*, got 'sincoz'"):
        fast(x, t, text)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    change, message = BAD[name]
    dtype = change.get("dtype", torch.float32)
    x, text = torch.randn(change.get("x", (2, 4, 3, 8, 8)), dtype=dtype), change.get("text", (2, 7, 40))
    text = None if text is None else torch.randn(text)
    mask = change.get("mask")
    mask = torch.ones(mask) if isinstance(mask, tuple) else mask
    fast = LatteT2V(**SMALL)
    with pytest.raises((ValueError, TypeError), match=message):
        fast(x, change.get("t", torch.tensor([1, 2])), text, mask, use_image_num=change.get("use_image_num", 0))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"norm_type": "layer_norm"}, "norm_type must be 'ada_norm_single', got 'layer_norm'"),
        ({"dropout": 0.1}, "dropout must be 0.0, got 0.1"),
        ({"attention_head_dim": 20}, "attention_head_dim must be a multiple of 8 up to 128, got 20"),
        ({"cross_attention_dim": 64}, "cross_attention_dim must be the width 72, got 64"),
        ({"num_layers": 0}, "num_layers must be a positive integer, got 0"),
        ({"recompute": "x"}, "LatteT2V: recompute must be one of none, .* got 'x'"),
        ({"extend_time": "x"}, "LatteT2V: extend_time must be one of error, .* got 'x'"),
    ],
)
def test_bad_config_is_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatteT2V(**SMALL | kwargs)
