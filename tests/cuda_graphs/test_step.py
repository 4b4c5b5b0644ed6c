"""A training step as two graphs: the model's own gradients, one capture for each set of shapes, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latte_fast import Latte, LatteT2V, testing
from latte_fast.cuda_graphs.step import StepReplay
from latte_fast.modules.recompute import POLICIES
from tests.cuda_graphs.conftest import PlayedStep
from tests.helpers.pairs import SMALL
from tests.helpers.played import clip
from tests.helpers.t2v import inputs
from tests.helpers.t2v import pair as text_pair


@pytest.fixture
def trained() -> Latte:
    return testing.refill(Latte(**SMALL | {"class_dropout_prob": 0.0}, extras=2)).train()


def gradients(call: Any, model: nn.Module, seed: int, batch: int = 2) -> list[Tensor | None]:
    x, t, y = clip(batch, seed)
    out = call(x, t, y=y)
    out = out if isinstance(out, Tensor) else out.sample
    model.zero_grad()
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)))
    return [p.grad for p in model.parameters()]


def same(found: list[Tensor | None], wanted: list[Tensor | None]) -> bool:
    return all(
        (g is None or not g.any()) if w is None else torch.equal(g, w) for g, w in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_the_models(policy: str, trained: Latte, played_step: PlayedStep) -> None:
    trained.recompute = policy
    replay = StepReplay(trained)
    for seed in range(3):
        assert same(gradients(replay, trained, seed), gradients(trained, trained, seed))
        with torch.no_grad():
            for p in trained.parameters():
                p.mul_(1.01)  # as an optimizer does
    assert played_step.captures == 1


def test_gradients_add_up_over_micro_batches(trained: Latte, played_step: PlayedStep) -> None:
    """A replay writes into the graph's own gradients, which must not be the parameters'."""

    def summed(call: Any) -> list[Tensor]:
        trained.zero_grad()
        for seed in (1, 2):
            x, t, y = clip(2, seed)
            call(x, t, y=y).square().sum().backward()
        return [p.grad.clone() for p in trained.parameters() if p.grad is not None]

    got, want = summed(StepReplay(trained)), summed(trained)
    assert all(testing.relative_error(g, w) < 1e-6 for g, w in zip(got, want, strict=True))


def test_new_shapes_and_weights_are_captured_anew(trained: Latte, played_step: PlayedStep) -> None:
    replay = StepReplay(trained)
    for batch in (2, 3, 2):
        gradients(replay, trained, 0, batch)
    assert played_step.captures == 2
    gradients(replay, trained, 0, 1)  # the least recently used goes
    gradients(replay, trained, 0, 3)
    assert played_step.captures == 4 and len(replay._graphs) == 2
    weight = trained.blocks[0].mlp.fc1.weight
    weight.data = weight.data.clone() * 2
    assert same(gradients(replay, trained, 4, 3), gradients(trained, trained, 4, 3))
    assert played_step.captures == 5
    trained.extend_time = "interpolate"  # a setting of the model
    assert same(gradients(replay, trained, 5, 3), gradients(trained, trained, 5, 3))
    assert played_step.captures == 6
    replay.forget()
    assert not replay._graphs


def test_an_output_object_is_given_back(played_step: PlayedStep) -> None:
    _, model = text_pair()
    model = testing.refill(model).train()
    x, t, text, mask = inputs(3, 8, 8)
    replay = StepReplay(model)
    for call in (replay, model):
        torch.manual_seed(0)
        out = call(x, t, encoder_hidden_states=text, encoder_attention_mask=mask)
        assert type(out).__name__ == "LatteOutput" or hasattr(out, "sample")
    assert isinstance(model, LatteT2V) and played_step.captures == 1
    assert torch.equal(replay(x, t, encoder_hidden_states=text, encoder_attention_mask=mask).sample, out.sample)


def test_a_backward_whose_activations_are_gone_is_named(trained: Latte, played_step: PlayedStep) -> None:
    replay = StepReplay(trained)
    x, t, y = clip()
    first, second = replay(x, t, y=y), replay(x, t, y=y)
    second.sum().backward()
    with pytest.raises(RuntimeError, match="a later call has overwritten what this backward needs"):
        first.sum().backward()


def test_what_a_graph_cannot_hold_runs_the_model(trained: Latte, played_step: PlayedStep) -> None:
    x, t, y = clip()
    replay = StepReplay(trained)
    handle = trained.blocks[1].register_forward_hook(lambda *args: None)
    replay(x, t, y=y)
    handle.remove()
    replay(x.clone().requires_grad_(), t, y=y)
    with torch.no_grad():
        replay(x, t, y=y)
    trained.eval()
    assert torch.equal(replay(x, t, y=y), trained(x, t, y=y))
    assert played_step.captures == 0


def test_without_a_gpu_it_is_the_model(trained: Latte) -> None:
    replay = StepReplay(trained)
    assert same(gradients(replay, trained, 0), gradients(trained, trained, 0)) and not replay._graphs
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        StepReplay(trained, most=0)
