"""Random illegal calls of ops and models: TypeError, ValueError or BackendUnavailable, and what is served is right."""

import pytest
import torch

from latte_fast import ops, use_backend
from latte_fast.backends import BackendUnavailable
from tests.trials.illegal import EXAMPLES, trial


def judged(calls: int, seed: int) -> None:
    counts, wrong = trial(calls, seed)
    print(f"{calls} calls: {dict(counts)}")
    assert not wrong, "\n".join(f"{key}\n  {error}\n  {shown}" for key, (error, shown) in wrong.items())


def test_every_op_is_called() -> None:
    assert {name.split(".")[0] for name in EXAMPLES} == {*ops.__all__}


def test_some_calls() -> None:
    judged(250, 3)


@pytest.mark.slow
def test_ten_thousand_calls() -> None:
    judged(10_000, 7)


def test_transforms_of_torch_func() -> None:
    x, y, gate = torch.randn(3, 2, 4, 16), torch.randn(3, 2, 4, 16), torch.randn(3, 2, 16)
    upstream = torch.randn(2, 4, 16)

    def loss(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return (ops.gate_residual(x, y, gate) * upstream).sum()

    each = torch.vmap(torch.func.grad(loss, argnums=2))(x, y, gate)
    for i in range(3):
        own = gate[i].clone().requires_grad_()
        loss(x[i], y[i], own).backward()
        torch.testing.assert_close(each[i], own.grad)
    with use_backend(gate_residual="cpu"), pytest.raises(BackendUnavailable, match="no rule for transforms"):
        torch.func.grad(loss)(x[0], y[0], gate[0])
