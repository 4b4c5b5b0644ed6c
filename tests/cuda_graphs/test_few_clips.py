"""Calls with few clips are replayed by themselves, from the second at the same shapes on, and no others."""

import copy
import io
import logging
from typing import Any

import pytest
import torch

from latte_fast import FlexLatte, Latte, Replay, backends, testing
from latte_fast.cuda_graphs import few_clips, replay
from tests.helpers.flex import FLEX
from tests.helpers.played import Played, clip
from tests.helpers.t2v import inputs
from tests.helpers.t2v import pair as text_pair


@pytest.fixture(autouse=True)
def on_a_gpu(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_clips, "on_gpu", lambda x: True)
    monkeypatch.setattr(backends, "_said", set())


@torch.no_grad()
def test_the_second_call_at_a_shape_is_captured(model: Latte, played: Played, caplog: pytest.LogCaptureFixture) -> None:
    plain = copy.deepcopy(model)
    plain.replays_few_clips = False
    with caplog.at_level(logging.INFO, "latte_fast"):
        for seed, captures in enumerate((0, 1, 1)):
            x, t, y = clip(seed=seed)
            assert torch.equal(model(x, t, y=y), plain(x, t, y=y)) and played.captures == captures
    assert [r.message for r in caplog.records if "few clips" in r.message] == [
        "calls with few clips are replayed as CUDA graphs; model.replays_few_clips = False turns it off"
    ]
    model(*clip(3)), model(*clip(3))
    assert (played.captures, played.replays) == (2, 3)
    for p in model.parameters():
        p.mul_(1.5)
    x, t, y = clip(seed=9)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x, t, y=y), plain(x, t, y=y)) and played.replays == 4


def test_what_is_never_replayed(model: Latte, played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(prepare: Any = None) -> int:
        for _ in range(2):
            model(*clip())
        return played.captures

    assert twice() == 0  # gradients
    with torch.no_grad():
        model.train()
        assert twice() == 0
        model.eval()
        monkeypatch.setattr(few_clips, "FEW", 1.0)
        assert twice() == 0
        monkeypatch.undo()
        assert twice() == 0  # not on a GPU


@pytest.mark.parametrize("how", ["model", "environment"])
@torch.no_grad()
def test_it_is_turned_off(how: str, model: Latte, played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "model":
        model.replays_few_clips = False
    else:
        monkeypatch.setenv("LATTE_FAST_REPLAY", "0")
    model(*clip()), model(*clip())
    assert played.captures == 0


@torch.no_grad()
def test_hooks_and_other_graphs_leave_a_model_as_it_is(model: Latte, played: Played) -> None:
    seen: list[int] = []
    handle = model.blocks[0].register_forward_hook(lambda *args: seen.append(1))
    for _ in range(3):
        model(*clip())
    assert len(seen) == 3 and played.captures == 0
    handle.remove()
    model(*clip())
    assert played.captures == 1
    outer = Replay(copy.deepcopy(model))
    outer(*clip()), outer(*clip())
    assert played.captures == 2  # the outer one's; the copy began without graphs
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    assert again._few_clips.replay is None and torch.equal(again(*clip()), model(*clip()))


@torch.no_grad()
def test_a_capture_that_fails_costs_nothing_but_a_sentence(
    model: Latte, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(replay, "capture", refuse)
    want = model(*clip())
    with caplog.at_level(logging.WARNING, "latte_fast"):
        assert all(torch.equal(model(*clip()), want) for _ in range(3))
    assert [r.message for r in caplog.records] == [
        "calls with few clips run launch by launch: operation not permitted when stream is capturing"
    ]


@torch.no_grad()
def test_other_families(played: Played) -> None:
    flex = testing.refill(FlexLatte(**FLEX)).eval()
    x, t = torch.randn(1, 3, 4, 8, 8), torch.tensor([5])
    outs = [flex(x, t, side=side) for side in (2, 2, 3, 3)]
    assert played.captures == 2 and torch.equal(outs[0], outs[1]) and torch.equal(outs[2], outs[3])
    _, text = text_pair()
    text = testing.refill(text).eval()
    x, t, words, mask = inputs(3, 8, 8)
    outs = [text(x, t, words, mask).sample for _ in range(3)]
    assert played.captures == 3 and torch.equal(outs[0], outs[1]) and torch.equal(outs[1], outs[2])
    other = torch.randn_like(words)
    text.replays_few_clips = False
    want = text(x, t, other, mask).sample
    text.replays_few_clips = True
    assert torch.equal(text(x, t, other, mask).sample, want) and not torch.equal(want, outs[0])
