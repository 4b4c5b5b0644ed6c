"""patch and unpatch on a live upstream-style model, which the oracle is."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from latte_fast import Latte, LatteIMG, patch, testing, unpatch


@pytest.mark.parametrize(("extras", "joint", "images"), [(1, False, 0), (2, False, 0), (78, False, 0), (2, True, 2)])
def test_patched_model_equals_the_oracle(
    extras: int, joint: bool, images: int, pair: Any, inputs: Any, run: Any
) -> None:
    oracle, _ = pair(joint, torch.float64, extras=extras)
    args, kwargs = inputs(oracle, images=images)
    dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:], dtype=torch.float64)
    exact, exact_grads = run(oracle, args, kwargs, dout)
    parameters = dict(oracle.named_parameters())
    kind = type(oracle)
    report = patch(oracle)
    assert {"", "x_embedder", "blocks.1.attn", "final_layer"} <= set(report.swapped)
    assert not report.kept
    assert isinstance(oracle, LatteIMG if joint else Latte) and isinstance(oracle, kind)
    got, grads = run(oracle, args, kwargs, dout)
    assert testing.relative_error(got, exact) <= 1e-11
    assert grads.keys() == exact_grads.keys()
    for name, p in oracle.named_parameters():
        assert p is parameters[name]
    unpatch(oracle)
    assert type(oracle) is kind
    again, again_grads = run(oracle, args, kwargs, dout)
    assert torch.equal(again, exact)
    assert all(torch.equal(again_grads[k], exact_grads[k]) for k in exact_grads)


def test_patched_instances_alone_change(pair: Any) -> None:
    a, _ = pair()
    b = copy.deepcopy(a)
    patch(a)
    assert type(b).__name__ == "Latte" and not isinstance(b, Latte)
    unpatch(a)
    assert all("_latte_fast" not in key for m in a.modules() for key in m.__dict__)


def test_state_dict_dtype_and_train_mode_follow(pair: Any, inputs: Any) -> None:
    oracle, fast = pair()
    patch(oracle)
    assert oracle.state_dict().keys() == fast.state_dict().keys()
    oracle.load_state_dict(fast.state_dict())
    oracle.to(torch.bfloat16).eval()
    args, kwargs = inputs(oracle)
    assert oracle(*args, **kwargs).dtype == torch.bfloat16
    assert not oracle.blocks[0].training


READ = ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "mlp_ratio", "num_frames",
        "learn_sigma", "extras")  # fmt: skip


@pytest.mark.parametrize(
    "cell",
    [{"extras": 2, "depth": 4, "mlp_ratio": 2.0}, {"learn_sigma": False, "patch_size": 4, "num_frames": 5}],
    ids=str,
)
def test_config_is_read_off_an_instance_that_has_none(cell: dict, pair: Any, inputs: Any) -> None:
    """As upstream's have none."""
    oracle, fast = pair(**cell)
    args, kwargs = inputs(oracle)
    del oracle.config
    patch(oracle)
    assert {name: getattr(oracle.config, name) for name in READ} == {name: getattr(fast.config, name) for name in READ}
    assert torch.equal(oracle.eval()(*args, **kwargs), fast.eval()(*args, **kwargs))
    unpatch(oracle)
    assert "config" not in oracle.__dict__


def test_patch_twice_and_inside_a_pipeline(pair: Any) -> None:
    oracle, _ = pair()
    pipe = nn.ModuleDict({"model": oracle, "vae": nn.Linear(2, 2)})
    assert any(name.startswith("model.blocks.0") for name in patch(pipe).swapped)
    assert patch(pipe).kept == {"model": "already fast"}
    unpatch(pipe)
    assert not isinstance(oracle, Latte)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda m: m.blocks.append(copy.deepcopy(m.blocks[0])), "alternate space and time, got 3"),
        (lambda m: setattr(m.blocks[0].mlp, "act", nn.GELU()), "must be the tanh GELU"),
        (lambda m: setattr(m.blocks[0], "norm1", nn.LayerNorm(64)), "without affine and with eps 1e-6"),
        (lambda m: setattr(m.blocks[1].attn, "drop", nn.Dropout(0.1)), "must not drop anything, got p = 0.1"),
        (lambda m: m.blocks[1].attn.register_forward_hook(lambda *a: None), "forward hooks"),
        (lambda m: delattr(m.blocks[1].attn, "qkv"), "blocks.1.attn must have qkv"),
        (lambda m: delattr(m.blocks[0], "mlp"), "blocks.0.mlp must have fc1, fc2"),
        (lambda m: setattr(m.blocks[1], "adaLN_modulation", nn.Linear(64, 384)), "must be SiLU and a linear layer"),
        (lambda m: setattr(m.blocks[0].attn, "q_norm", nn.RMSNorm(32)), "is a norm that a Latte does not have"),
        (lambda m: delattr(m, "extras"), "it has no attribute extras"),
        (lambda m: setattr(m, "extras", 5), "extras must be 1, 2 or 78, got 5"),
    ],
)
def test_what_would_change_the_numbers_is_kept_with_a_reason(spoil: Any, reason: str, pair: Any) -> None:
    oracle, _ = pair()
    spoil(oracle)
    report = patch(oracle)
    assert not report.swapped
    assert reason in report.kept[""]
    assert not isinstance(oracle, Latte)
    assert reason in str(report)


def test_not_a_latte() -> None:
    report = patch(nn.Linear(2, 2))
    assert "no Latte inside" in report.kept[""]


@pytest.mark.parametrize("function", [patch, unpatch])
def test_what_is_no_model_is_refused(function: Any) -> None:
    message = f"^{function.__name__}: model must be a module or a pipeline with components, got int"
    with pytest.raises(TypeError, match=message):
        function(3)
