"""Replay: what is captured again, and what copies, threads and graphs that go leave behind."""

import copy
import dataclasses
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latte_fast import Latte, Replay, testing
from tests.helpers.played import Played, clip


class Lora(nn.Module):
    """As peft wraps a layer: what it does depends on attributes; one of them is made on the first call."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer, self.scaling, self.off = layer, {"default": 2.0}, False
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.table = torch.zeros(x.shape[-1] // 4) if self.table is None else self.table
        return self.layer(x) + self.table + (0 if self.off else self.scaling["default"])


def exchange(model: Latte) -> None:
    block = model.blocks[0]
    block.mlp.fc1 = testing.refill(copy.deepcopy(block.mlp.fc1), seed=4)


def move(model: Latte) -> None:
    weight = model.blocks[1].attn.qkv.weight
    weight.data = weight.data * 2


def transpose(model: Latte) -> None:
    weight = model.blocks[1].attn.proj.weight
    weight.data = weight.data.t()


CHANGES: dict[str, Callable[[Any], object]] = {
    "layer exchanged": exchange,
    "weight put elsewhere": move,
    "weight read across": transpose,
    "weights cast": lambda model: model.double().float(),
    "another rule": lambda model: setattr(model, "extend_time", "sincos"),
    "another config": lambda model: setattr(model, "config", dataclasses.replace(model.config, time_pos="rope")),
    "LoRA off": lambda model: setattr(model.blocks[0].mlp.fc2, "off", True),
    "LoRA scaled": lambda model: model.blocks[0].mlp.fc2.scaling.update(default=0.5),
    "table that is no parameter": lambda model: setattr(model.blocks[0].mlp.fc2, "table", torch.ones(64)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_graph_can_not_follow_is_captured_again(change: Any, model: Latte, played: Played) -> None:
    model.blocks[0].mlp.fc2 = Lora(model.blocks[0].mlp.fc2).eval()
    fast = Replay(model)
    x, t, y = clip()
    with torch.no_grad():
        fast(x, t, y)
        change(model)
        assert torch.equal(fast(x, t, y), model(x, t, y))
        fast(x, t, y)
    assert played.captures == 2 and len(fast._graphs) == 1


def test_a_pool_that_all_graphs_have_left_is_not_used_again(model: Latte, played: Played) -> None:
    fast = Replay(model, most=1)
    with torch.no_grad():
        for batch in (1, 2):
            fast(*clip(batch))
        fast.most = 2
        fast(*clip(3))
    assert played.pools[0] is not played.pools[1] is played.pools[2]


def test_copies_begin_without_graphs(model: Latte, played: Played) -> None:
    fast = Replay(model.forward_with_cfg)
    x, t, y = clip()
    with torch.no_grad():
        want = fast(x, t, y)
        # no more to be copied than a CUDA graph is
        fast._graphs["other"] = threading.Lock()  # type: ignore[assignment, index]
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert not other._graphs and other.model is not model and other._run[0].__self__ is other.model
            assert torch.equal(other(x, t, y), want)


def test_another_precision_is_captured_again(model: Latte, played: Played) -> None:
    fast = Replay(model)
    before = torch.get_float32_matmul_precision()
    with torch.no_grad():
        for setting in ("high", "highest", "highest"):
            torch.set_float32_matmul_precision(setting)
            fast(*clip())
        torch.set_float32_matmul_precision(before)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            fast(*clip())
    assert played.captures == 3


def test_threads_take_turns(model: Latte, played: Played) -> None:
    fast, outs = Replay(model), {}

    def draw(seed: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                outs.setdefault(seed, []).append(fast(*clip(seed=seed)))

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        assert all(torch.equal(out, model(*clip(seed=seed))) for seed in range(4) for out in outs[seed])
    assert played.captures == 1
