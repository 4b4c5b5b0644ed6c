"""The fast Latte against the oracle: output and the gradient of every parameter."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latte_fast import Latte, Latte_models, LatteIMG, LatteIMG_models, reference, testing
from latte_fast.config import PRESETS, preset
from tests.helpers.pairs import assert_gradients

CELLS = [(extras, joint, images) for extras in (1, 2, 78) for joint, images in ((False, 0), (True, 0), (True, 2))]
# every preset's heads and width, at a depth and a clip that a CPU can afford
SHRUNK = {
    name: dict(kw) | {"depth": 2, "num_frames": 3, "input_size": 2 * kw["patch_size"]} for name, kw in PRESETS.items()
}


@pytest.mark.parametrize(("extras", "joint", "images"), CELLS)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_float64_equals_oracle(
    extras: int, joint: bool, images: int, train: bool, pair: Any, inputs: Any, run: Any
) -> None:
    oracle, fast = pair(joint, torch.float64, extras=extras, depth=4, class_dropout_prob=0.5)
    args, kwargs = inputs(oracle, images=images, batch=3)
    dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:], dtype=torch.float64)
    exact, exact_grads = run(oracle.train(train), args, kwargs, dout)
    out, grads = run(fast.train(train), args, kwargs, dout)
    assert exact.abs().max() > 0
    assert testing.relative_error(out, exact) <= 1e-11
    assert_gradients(grads, exact_grads, 1e-11)


# of a size the other patches repeat what it shows
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n[-1] in "48" and n[6] in "LX" else ()) for n in SHRUNK]
)
def test_float32_presets(name: str, pair: Any, inputs: Any, run: Any) -> None:
    oracle, fast = pair(False, **SHRUNK[name], extras=2)
    args, kwargs = inputs(oracle)
    dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:])
    # both compute the same fp32 sinusoid of t; the rest of the oracle runs in float64
    out, grads = run(fast.eval(), args, kwargs, dout)
    exact, exact_grads = run(oracle.double().eval(), (args[0].double(), args[1]), kwargs, dout)
    assert testing.relative_error(out, exact) <= 3e-6
    assert_gradients(grads, exact_grads, 3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("extras", "joint", "images"), [(1, False, 0), (2, True, 2), (78, False, 0)])
def test_sixteen_bit_no_worse_than_torch(
    dtype: torch.dtype, extras: int, joint: bool, images: int, pair: Any, inputs: Any
) -> None:
    oracle, fast = pair(joint, extras=extras, hidden_size=144)
    args, kwargs = inputs(oracle, images=images)
    oracle, fast = oracle.to(dtype).eval(), fast.to(dtype).eval()
    args = (args[0].to(dtype), args[1])
    kwargs = {k: v.to(dtype) if k == "text_embedding" else v for k, v in kwargs.items()}
    with torch.no_grad():
        same, got = oracle(*args, **kwargs), fast(*args, **kwargs)
        wide = {k: v.float() if k == "text_embedding" else v for k, v in kwargs.items()}
        exact = oracle.float()(args[0].float(), args[1], **wide)
    testing.assert_no_worse_than_torch("output", got, same, exact)


def test_autocast(pair: Any, inputs: Any, run: Any) -> None:
    oracle, fast = pair(extras=2, hidden_size=128)
    args, kwargs = inputs(oracle)
    dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:])
    exact, exact_grads = run(oracle.eval(), args, kwargs, dout)
    with torch.autocast("cpu", torch.bfloat16):
        same, same_grads = run(oracle, args, kwargs, dout)
        got, grads = run(fast.eval(), args, kwargs, dout)
    testing.assert_no_worse_than_torch("output", got, same, exact)
    floor = 8 * torch.finfo(torch.bfloat16).eps * max(g.abs().max().item() for g in exact_grads.values())
    for name in exact_grads:
        assert grads[name].dtype == torch.float32
        # gradients of fp32 parameters carry bf16 error
        same16, got16 = same_grads[name].bfloat16(), grads[name].bfloat16()
        testing.assert_no_worse_than_torch(name, got16, same16, exact_grads[name], vanishing=floor)


@pytest.mark.parametrize("policy", ["elementwise", "mlp", "block"])
@pytest.mark.parametrize(("extras", "joint", "images"), [(1, False, 0), (2, True, 2)])
def test_recompute_gives_the_same_gradients(
    policy: str, extras: int, joint: bool, images: int, pair: Any, inputs: Any, run: Any
) -> None:
    oracle, fast = pair(joint, torch.float64, extras=extras, depth=4)
    args, kwargs = inputs(oracle, images=images)
    dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:], dtype=torch.float64)
    _, exact_grads = run(oracle, args, kwargs, dout)
    fast.recompute = policy
    _, grads = run(fast, args, kwargs, dout)
    assert_gradients(grads, exact_grads, 1e-11)


@pytest.mark.parametrize("policy", ["none", "elementwise", "mlp", "block"])
def test_recompute_runs_only_what_it_says(policy: str, pair: Any, inputs: Any) -> None:
    """FLOPs of a step beyond those without recompute, to the last one: none, fc1's, or the whole blocks'."""
    _, fast = pair(extras=1, depth=2)
    args, kwargs = inputs(fast)
    counts = {}
    for each in ("none", policy):
        fast.recompute = each
        with FlopCounterMode(display=False) as counter:
            fast(*args, **kwargs).square().mean().backward()
        counts[each] = counter.get_total_flops()
    d, clips, frames, patches = 64, 2, 3, 16
    tokens = clips * frames * patches
    attention = 4 * tokens * d * (patches + frames)
    whole = 2 * tokens * 24 * d * d + 2 * clips * 12 * d * d + attention  # two blocks: token layers, adaLN, attention
    again = {"none": 0, "elementwise": 0, "mlp": 2 * tokens * 8 * d * d, "block": whole}[policy]
    assert counts[policy] - counts["none"] == again


def test_same_loss_curve_for_32_steps(pair: Any, inputs: Any) -> None:
    oracle, fast = pair(extras=2)
    curves = []
    for model in (oracle, fast):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(3)
        losses = []
        for step in range(32):
            args, kwargs = inputs(oracle, seed=step)
            target = torch.randn(
                *args[0].shape[:2], 8, *args[0].shape[3:], generator=torch.Generator().manual_seed(step)
            )
            loss = (model(*args, **kwargs) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
    assert ((curves[1] - curves[0]).abs() / curves[0]).max() <= 1e-4
    assert curves[0][-1] < curves[0][0]


def test_cfg_equals_oracle(pair: Any, inputs: Any) -> None:
    oracle, fast = pair(dtype=torch.float64, extras=2)
    (x, t), _ = inputs(oracle, batch=4)
    t = t[:2].repeat(2)
    y = torch.tensor([1, 3, 5, 5])
    exact = oracle.eval().forward_with_cfg(x, t, y=y, cfg_scale=4.0)
    assert testing.relative_error(fast.eval().forward_with_cfg(x, t, y=y, cfg_scale=4.0), exact) <= 1e-11
    with pytest.raises(ValueError, match="even batch"):
        fast.forward_with_cfg(x[:3], t[:3], y=y[:3])
    oracle, fast = pair(dtype=torch.float64, extras=78)
    (x, t), text = inputs(oracle, batch=4)
    exact = oracle.eval().forward_with_cfg(x, t, cfg_scale=4.0, **text)
    assert testing.relative_error(fast.eval().forward_with_cfg(x, t, cfg_scale=4.0, **text), exact) <= 1e-11


@torch.no_grad()
@pytest.mark.parametrize("joint", [False, True])
def test_use_fp16_takes_a_wider_clip(joint: bool, pair: Any, inputs: Any) -> None:
    _, fast = pair(joint, extras=2)
    (x, t), kwargs = inputs(fast, images=2 * joint)
    fast.half().eval()
    want = fast(x.half(), t, **kwargs)
    assert want.dtype == torch.float16 and torch.equal(fast(x, t, **kwargs, use_fp16=True), want)
    with pytest.raises(TypeError, match=r"weights' dtype torch\.float16, got torch\.float32"):
        fast(x, t, **kwargs)
    if not joint:
        want = fast.forward_with_cfg(x.half(), t, **kwargs)
        assert torch.equal(fast.forward_with_cfg(x, t, **kwargs, use_fp16=True), want)


@pytest.mark.parametrize("train", [True, False])
def test_compiles_whole_and_once(train: bool, pair: Any, inputs: Any, run: Any) -> None:
    _, fast = pair(extras=2)
    fast.train(train)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(fast, fullgraph=True)
        for seed in range(3):
            args, kwargs = inputs(fast, seed=seed)
            # inductor's exp differs by an ulp, which a large t turns into phase: 2e-5 of a gradient at t = 900
            args = (args[0], args[1] % 10)
            dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:])
            if train:
                kwargs["y"] = torch.full_like(kwargs["y"], seed)
            same, same_grads = run(compiled, args, kwargs, dout)
            if not train:
                out, grads = run(fast, args, kwargs, dout)
                assert testing.relative_error(same, out) <= 3e-6
                assert_gradients({k.removeprefix("_orig_mod."): v for k, v in same_grads.items()}, grads, 1e-5)


@pytest.mark.parametrize("mode", ["math", "flash", "xformers"])
def test_every_attention_mode_computes_the_same(mode: str, inputs: Any) -> None:
    from tests.helpers.pairs import SMALL

    model = Latte(**SMALL, attention_mode=mode)
    args, kwargs = inputs(model)
    assert model(*args, **kwargs).abs().max() == 0  # a fresh model returns exactly 0


@pytest.mark.parametrize("extend", ["sincos", "interpolate"])
def test_other_frames_and_sizes(extend: str, pair: Any, inputs: Any) -> None:
    _, fast = pair(extras=1)
    (_, t), _ = inputs(fast)
    fast.extend_time = fast.extend_space = extend
    for shape in [(2, 5, 4, 8, 8), (2, 3, 4, 12, 6), (2, 1, 4, 4, 10)]:
        assert fast(torch.randn(shape), t).shape == (*shape[:2], 8, *shape[3:])


def test_sincos_extension_equals_a_model_built_at_that_size(pair: Any, inputs: Any) -> None:
    oracle, big = pair(extras=1, input_size=12, num_frames=5)
    args, _ = inputs(oracle)
    _, small = pair(extras=1)
    small.extend_time = small.extend_space = "sincos"
    state = {k: v for k, v in big.state_dict().items() if k not in ("pos_embed", "temp_embed")}
    small.load_state_dict(state, strict=False)
    assert testing.relative_error(small.eval()(*args), oracle.eval()(*args)) <= 3e-6


def test_images_bypass_time(pair: Any, inputs: Any) -> None:
    _, fast = pair(True, extras=1)
    args, kwargs = inputs(fast, images=2)
    base = fast(*args, **kwargs)
    x = args[0].clone()
    x[:, -1] += 1
    changed = (fast(x, args[1], **kwargs) != base).flatten(2).any(-1)
    assert changed[0].tolist() == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"depth": 3}, "depth must be even"),
        ({"depth": "2"}, "depth must be a positive integer, got '2'"),
        ({"depth": None}, "depth must be a positive integer, got None"),
        ({"depth": 2.0}, r"depth must be a positive integer, got 2\.0"),
        ({"class_dropout_prob": "0.1"}, r"class_dropout_prob must be a number in \[0, 1\), got '0\.1'"),
        ({"class_dropout_prob": 1.0}, r"class_dropout_prob must be a number in \[0, 1\), got 1\.0"),
        ({"mlp_ratio": -1}, "mlp_ratio must be a positive number, got -1"),
        ({"mlp_ratio": 0}, "mlp_ratio must be a positive number, got 0"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be a positive number, got '4'"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a positive number, got nan"),
        ({"learn_sigma": "no"}, "learn_sigma must be True or False, got 'no'"),
        ({"hidden_size": 72, "num_heads": 6}, "head width is a multiple of 8"),
        ({"hidden_size": 64, "num_heads": 3}, "hidden_size must be a multiple of num_heads 3"),
        ({"input_size": 9}, "input_size must be a multiple of patch_size"),
        ({"num_frames": 0}, "num_frames must be a positive integer, got 0"),
        ({"extras": 3}, "extras must be 1"),
        ({"attention_mode": "slow"}, "attention_mode must be one of"),
        ({"recompute": "all"}, "recompute must be one of"),
        ({"extend_time": "loop"}, "extend_time must be one of"),
    ],
    ids=str,
)
def test_bad_constructor(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Latte(**keywords)


def test_forced_reference_equals_auto(pair: Any, inputs: Any) -> None:
    from latte_fast import use_backend

    _, fast = pair(extras=1, dtype=torch.float64)
    args, _ = inputs(fast)
    with use_backend("reference"):
        plain = fast(*args)
    assert testing.relative_error(fast(*args), plain) <= 1e-11


def test_registry() -> None:
    assert set(Latte_models) == set(reference.latte.Latte_models)
    assert len(Latte_models) == 14
    assert isinstance(Latte_models["Latte-S/8"](input_size=8), Latte)
    for models in (Latte_models, LatteIMG_models):
        with pytest.raises(KeyError, match=r"preset must be one of Latte.*-XL/2, .* got 'Latte-Q/2'"):
            models["Latte-Q/2"]
    with pytest.raises(ValueError, match="preset: size must be one of XL, L, B, S, got 'Q'"):
        preset("Q", 2)
    assert LatteIMG(depth=2, hidden_size=64, num_heads=2).extras == 2
