"""The walk that finds changed modules: hooks for all modules, and what torch.compile sees of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.flop_counter import FlopCounterMode

from latte_fast import Latte, patch, reference, testing
from tests.helpers import tiny_vqgan

SIZES: dict[str, Any] = {"input_size": 8, "patch_size": 4, "in_channels": 2, "hidden_size": 16, "depth": 2,
                         "num_heads": 2, "num_frames": 2, "num_classes": 5, "extras": 2}  # fmt: skip


def fresh(kind: type[nn.Module] = Latte) -> nn.Module:
    torch.manual_seed(0)
    return testing.refill(kind(**SIZES)).eval()


def call(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return model(torch.randn(2, 2, 2, 8, 8, generator=generator), torch.tensor([3, 90]), torch.tensor([1, 4]))


@contextmanager
def registered(register: Callable[..., Any], hook: Callable[..., Any]) -> Iterator[None]:
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


KINDS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_for_all_modules_are_refused(kind: str) -> None:
    model, theirs = fresh(), fresh(reference.latte.Latte)
    want = call(model)
    with registered(getattr(torch_module, f"register_module_{kind}"), lambda *args: None):
        with pytest.raises(ValueError, match=r"^Latte: torch's hooks for all modules must be removed"):
            call(model)
        with pytest.raises(ValueError, match=r"^VQGAN: torch's hooks for all modules must be removed"):
            tiny_vqgan.pair()[0].latents(tiny_vqgan.clip())
        assert "hooks for all modules" in patch(theirs).kept[""]
    assert torch.equal(call(model), want) and patch(theirs).swapped


def test_hooks_of_torchs_own_tools_only_look_on() -> None:
    model = fresh()
    with FlopCounterMode(display=False) as counter:
        assert counter.mod_tracker is not None and torch_module._global_forward_pre_hooks
        out = call(model)
    assert torch.equal(out, call(model)) and counter.get_total_flops() > 0


def compiled(model: nn.Module) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(model, backend="eager")


def test_compiled_model_refuses_a_changed_module_by_name() -> None:
    model: Any = fresh()
    model.blocks[1].adaLN_modulation[0] = nn.Tanh()
    with pytest.raises(ValueError, match=r"Latte: blocks\.1\.adaLN_modulation\.0 must be SiLU"), torch.no_grad():
        call(compiled(model))


@pytest.mark.slow
def test_compiled_model_calls_a_changed_module() -> None:
    model: Any = fresh()
    before = call(model)
    model.blocks[1].mlp.act = nn.ReLU()
    with torch.no_grad():
        want, got = call(model), call(compiled(model))
    assert testing.relative_error(got, want) <= 1e-6 < testing.relative_error(before.detach(), want)


@pytest.mark.slow
def test_compiled_model_is_asked_again_after_a_reset() -> None:
    """A compiled forward is the one that was traced; torch does not look for hooks again either."""
    model: Any = fresh()
    with torch.no_grad():
        fast = compiled(model)
        want = call(model)
        assert testing.relative_error(call(fast), want) <= 1e-6
        model.final_layer.adaLN_modulation[0].register_forward_hook(lambda module, args, out: 2 * out)
        torch._dynamo.reset()
        with pytest.raises(ValueError, match=r"final_layer\.adaLN_modulation\.0 has hooks"):
            call(fast)
