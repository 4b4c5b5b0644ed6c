"""Layers in one storage: read as one without a copy, still parameters of their own."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latte_fast.modules.linear import is_plain, joined, share_storage


def three(bias: bool = True, dtype: torch.dtype = torch.float64) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(4, n, bias=bias, dtype=dtype) for n in (4, 4, 6)]


@pytest.mark.parametrize("bias", [True, False])
def test_joined_is_a_view_with_split_gradients(bias: bool) -> None:
    layers = three(bias)
    before = [layer.weight for layer in layers]
    values = [p.detach().clone() for p in before]
    assert joined(layers) is None
    assert share_storage(layers)
    assert all(layer.weight is p for layer, p in zip(layers, before, strict=True))
    assert all(torch.equal(p, v) for p, v in zip(before, values, strict=True))
    whole = joined(layers)
    assert whole is not None
    weight, b = whole
    assert weight.data_ptr() == before[0].data_ptr() and weight.shape == (14, 4)
    assert (b is None) == (not bias)
    x, dout = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 14, dtype=torch.float64)
    parameters = [p for layer in layers for p in layer.parameters()]
    got = torch.autograd.grad(nn.functional.linear(x, weight, b), parameters, dout)
    want = torch.autograd.grad(torch.cat([layer(x) for layer in layers], dim=1), parameters, dout)
    assert all(torch.allclose(a, c, rtol=1e-14, atol=1e-14) for a, c in zip(got, want, strict=True))


def test_write_between_forward_and_backward_is_an_error() -> None:
    layers = three()
    share_storage(layers)
    weight, _ = joined(layers) or pytest.fail("not joined")
    out = weight.square().sum()
    with torch.no_grad():
        layers[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_what_is_not_plain_stays_apart() -> None:
    for spoil in ("hook", "pre-hook", "forward", "type", "subclass", "bias", "dtype", "width", "meta", "one bias"):
        layers = three()
        if spoil == "hook":
            layers[1].register_forward_hook(lambda *args: None)
        if spoil == "pre-hook":
            layers[1].register_forward_pre_hook(lambda *args: None)
        if spoil == "forward":
            layers[1].forward = lambda x: x
        if spoil == "type":
            layers[1] = type("Other", (nn.Linear,), {})(4, 4, dtype=torch.float64)
        if spoil == "subclass":
            # as quantised weights are: what lies in their storage is not what they multiply with
            held = layers[1].weight.detach().as_subclass(type("Quantised", (torch.Tensor,), {}))
            layers[1].weight = nn.Parameter(held)
        if spoil == "bias":
            layers[1].bias = None
        if spoil == "dtype":
            layers[1].float()
        if spoil == "width":
            layers[1] = nn.Linear(5, 4, dtype=torch.float64)
        if spoil == "meta":
            layers = [layer.to("meta") for layer in layers]
        if spoil == "one bias":
            layers[1].bias.data = layers[1].bias.data.float()
        before = [(p, p.data_ptr(), p.dtype) for layer in layers for p in layer.parameters()]
        assert not share_storage(layers), spoil
        assert joined(layers) is None
        assert before == [(p, p.data_ptr(), p.dtype) for layer in layers for p in layer.parameters()]
        assert is_plain(layers[1]) == (spoil not in ("hook", "pre-hook", "forward", "type", "subclass"))


@pytest.mark.parametrize("which", [0, 1])
def test_a_bias_that_has_gone_ends_the_join(which: int) -> None:
    layers = three()
    assert share_storage(layers) and joined(layers) is not None
    layers[which].bias = None
    assert joined(layers) is None and not share_storage(layers)


def test_moves_copies_and_files_keep_the_values(tmp_path: object) -> None:
    module = nn.ModuleList(three(dtype=torch.float32))
    share_storage(list(module))
    state = {k: v.clone() for k, v in module.state_dict().items()}
    save_file(module.state_dict(), f"{tmp_path}/x.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in load_file(f"{tmp_path}/x.safetensors").items())
    torch.save(module.state_dict(), f"{tmp_path}/x.pt")
    assert all(torch.equal(v, state[k]) for k, v in torch.load(f"{tmp_path}/x.pt").items())
    moved = copy.deepcopy(module).to(torch.float64)
    assert joined(list(moved)) is None and share_storage(list(moved))
