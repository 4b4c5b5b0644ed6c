"""What stands for CUDA graphs where there is no GPU, and the model that is replayed."""

import pytest
import torch
from torch import Tensor

from latte_fast import Latte, testing
from latte_fast.cuda_graphs import step
from latte_fast.cuda_graphs.step import Call, Graphs
from tests.helpers.pairs import SMALL


@pytest.fixture
def model() -> Latte:
    return testing.refill(Latte(**SMALL, extras=2)).eval()


class PlayedStep:
    """Stands in for a step's two graphs: each repeats its part eagerly, on its own inputs, into its own tensors."""

    def __init__(self) -> None:
        self.captures = 0

    def make(self, call: Call, tensors: tuple[Tensor, ...]) -> Graphs:
        self.captures += 1
        weights = [p for p in call.parameters() if p.requires_grad]
        kept: list[Tensor] = [call(*tensors)]
        out = kept[0].detach().fill_(float("nan"))
        grads = [torch.full_like(p, float("nan")) for p in weights]

        def forward() -> None:
            with torch.enable_grad():
                kept[:] = [call(*tensors)]
            out.copy_(kept[0].detach())

        def backward() -> None:
            found = torch.autograd.grad(kept[0], weights, graphs.dout, allow_unused=True)
            for mine, new in zip(grads, found, strict=True):
                mine.copy_(torch.zeros_like(mine) if new is None else new)

        graphs = Graphs(tensors, out, torch.empty_like(out), [*grads], forward, backward)
        return graphs


@pytest.fixture
def played_step(monkeypatch: pytest.MonkeyPatch) -> PlayedStep:
    played = PlayedStep()
    monkeypatch.setattr(step, "on_gpu", lambda x: True)
    monkeypatch.setattr(step, "is_capturing", lambda: False)
    monkeypatch.setattr(step, "make_graphs", played.make)
    return played
