"""What the blocks add to their tokens, kept and extrapolated."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import Latte, testing
from latte_fast.models.flexdit.model import FlexLatte
from latte_fast.modules.stack_reuse import StackReuse, extrapolation
from latte_fast.testing import relative_error
from tests.helpers import t2v

SMALL: dict[str, Any] = {"input_size": 8, "hidden_size": 32, "depth": 4, "num_heads": 2, "num_frames": 2, "extras": 1}


def latte() -> tuple[Any, Any]:
    model = testing.refill(Latte(**SMALL)).eval()
    x = torch.randn(4, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return model, lambda rows, t: model(x[:rows], torch.full((rows,), t))


def flex() -> tuple[Any, Any]:
    model = testing.refill(FlexLatte(**SMALL | {"depth": 6}, layout="PD GSRD", sides=(2, 3), patch_size=2)).eval()
    x = torch.randn(4, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return model, lambda rows, t: model(x[:rows], torch.full((rows,), t), side=2)


def text() -> tuple[Any, Any]:
    _, model = t2v.pair()
    x, _, words, *_ = t2v.inputs(3, 8, 8)
    x, words = (torch.cat([v, v])[:4] for v in (x, words))
    return model.eval(), lambda rows, t: model(x[:rows], torch.full((rows,), t), words[:rows]).sample


@pytest.mark.parametrize("make", [latte, flex, text])
def test_reuse_of_the_same_step_is_the_step(make: Any) -> None:
    """Order 0 at the step itself, and order 1 between two equal steps, give the computed output; blocks do not run."""
    model, call = make()
    runs: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda *args: runs.append(1))
    with torch.no_grad():
        want = call(2, 500)
        reuse = StackReuse()
        with reuse.attached(model):
            reuse.compute(0)
            assert torch.equal(call(2, 500), want) or relative_error(call(2, 500), want) <= 3e-6
            before = len(runs)
            reuse.reuse(1, 0)
            assert relative_error(call(2, 500), want) <= 3e-6
            reuse.compute(1)
            call(2, 500)
            computed = len(runs)
            reuse.reuse(2, 1)
            assert relative_error(call(1, 500), want[:1]) <= 3e-6  # the first half alone
            assert len(runs) == computed and before > 0
        assert torch.equal(call(2, 500), want)


def test_a_changed_stack_changes_the_reuse() -> None:
    """The weights of an extrapolation are used: a wrong one would pass the test above."""
    model, call = latte()
    reuse = StackReuse()
    with torch.no_grad(), reuse.attached(model):
        outs: list[Tensor] = []
        for position, t in enumerate((900, 600)):
            reuse.compute(position)
            outs.append(call(2, t))
        (_, newer), (_, older) = reuse.kept
        reuse.reuse(3, 1)
        found = reuse.extrapolated(torch.zeros_like(newer))
    assert relative_error(found, newer + 2 * (newer - older)) <= 1e-6
    assert relative_error(found, newer) > 0.1


def test_weights_are_those_of_the_polynomial() -> None:
    for positions in ([3.0], [3.0, 1.0], [7.0, 4.0, 2.0]):
        weights = extrapolation(positions, 9.0)
        for power in range(len(positions)):
            total = sum(w * p**power for w, p in zip(weights, positions, strict=True))
            assert total == pytest.approx(9.0**power)


def test_refusals() -> None:
    model, call = latte()
    reuse = StackReuse()
    with pytest.raises(ValueError, match="order must be below the 0 computed"):
        reuse.reuse(1, 0)
    with pytest.raises(ValueError, match="model must offer"), reuse.attached(torch.nn.Linear(2, 2)):
        pass
    with torch.no_grad(), reuse.attached(model):
        with pytest.raises(ValueError, match="another run"), StackReuse().attached(model):
            pass
        reuse.compute(0)
        call(1, 5)
        reuse.reuse(1, 0)
        with pytest.raises(ValueError, match="batch must be at most that of the computed step, 1, got 2"):
            call(2, 5)
    assert model.stack_reuse is None
