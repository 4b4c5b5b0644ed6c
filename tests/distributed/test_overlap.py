"""Tokens on their way to attention over time while other work runs: in what order, and that no host waits.

On the meta device, with a group that moves nothing: what NCCL and a CUDA graph need is that the host only queues work,
in an order that leaves something to compute while something moves.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast import Latte, LatteT2V
from latte_fast.modules.sequence import Parallel, ParallelConfig, Shards
from latte_fast.ops import axis_exchange
from tests.helpers.waiting import GPU, no_waiting


class Group:
    """Rank 0 of two."""

    group_name = "pair"

    def size(self) -> int:
        return 2

    def rank(self) -> int:
        return 0


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens in turn: an exchange begins, is waited for, or is waited for as it begins."""
    done: list[str] = []

    class Work:
        def wait(self) -> None:
            done.append("wait")

    def exchange(out: Tensor, x: Tensor, *counts: Any, group: Any, async_op: bool) -> Work | None:
        done.append("begin" if async_op else "both")
        return Work() if async_op else None

    monkeypatch.setattr(axis_exchange, "group_named", lambda name: Group())
    monkeypatch.setattr(axis_exchange.dist, "all_to_all_single", exchange)
    return done


IN_TWO = ["begin", "begin", "wait", "compute", "begin", "wait", "compute", "begin", "wait", "wait"]


def test_one_piece_moves_while_another_is_computed(order: list[str]) -> None:
    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            order.append("compute")
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            order.append("compute")
            return grad * 2

    h = torch.randn(2, 2, 6, 8, device=GPU, requires_grad=True)
    shards = Shards("pair", 0, 2, 4, pieces=2)
    with no_waiting():
        y, shared = shards.over_time(h, lambda part: (Seen.apply(part), None))
        assert order == IN_TWO and y.shape == h.shape and shared is None
        order.clear()
        y.square().sum().backward()
    assert order == IN_TWO and h.grad is not None


def shared(model: Any, pieces: int) -> Any:
    parallel = object.__new__(Parallel)
    parallel.config, parallel.pieces = ParallelConfig(sequence=2, pieces=pieces), pieces
    parallel._groups, parallel._compared = {"sequence": Group()}, True
    model.parallel = parallel
    return model.to(GPU).train()


def clip() -> Callable[[Any], Tensor]:
    x, t = torch.randn(2, 4, 4, 8, 8, device=GPU), torch.zeros(2, dtype=torch.long, device=GPU)
    return lambda model: model(x, t, y=t)


def text() -> Callable[[Any], Tensor]:
    x, t = torch.randn(2, 4, 4, 8, 8, device=GPU), torch.zeros(2, dtype=torch.long, device=GPU)
    states, mask = torch.randn(2, 7, 24, device=GPU), torch.ones(2, 7, device=GPU, dtype=torch.bool)
    return lambda model: model(x, t, states, mask).sample


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Callable[[Any], Tensor]]]] = {
    "clip": (lambda: Latte(input_size=8, hidden_size=32, depth=4, num_heads=2, num_frames=4, extras=2), clip),
    "text": (lambda: LatteT2V(num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2,
                              sample_size=8, caption_channels=24, video_length=4), text),
}  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_no_host_waits(order: list[str], name: str, pieces: int) -> None:
    """Two blocks over time, forward and backward; without gradients as well."""
    make, inputs = MODELS[name]
    model, call = shared(make(), pieces), inputs()
    expected = [step for step in IN_TWO if step != "compute"]
    with no_waiting():
        out = call(model)
        if pieces == 2:
            assert order == 2 * expected
            order.clear()
        out.square().mean().backward()
        if pieces == 2:
            assert order == 2 * expected
            order.clear()
        with torch.no_grad():
            call(model)
    assert out.shape[0] == 2 and all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert order == (2 * expected if pieces == 2 else [])  # in one piece it is an op, whose body meta tensors skip
