"""Plans as CUDA graphs, played by the captured calls themselves: how many there are, and that they are right."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast.runs.plan import Plan
from latte_fast.sampling.planned import plain_plan
from latte_fast.sampling.sample import open_source
from latte_fast.sampling.source import ModelSource
from latte_fast.testing import relative_error
from latte_fast.training import DiffusionConfig, ModelConfig, Trainer
from tests.helpers.played import Played
from tests.helpers.texts import shapes_texts
from tests.helpers.tiny_run import stirred, tiny

MODEL = ModelConfig(patch_size=4, hidden_size=32, depth=4, num_heads=2, class_dropout_prob=0.2, learn_sigma=False)
# what makes the host wait for the device
WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "unique", "__bool__", "__int__", "__float__", "__index__")


@pytest.fixture(scope="module", params=["classes", "text"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny(folder / "run", model=MODEL, steps=1, diffusion=DiffusionConfig(prediction="start_x"))
    if request.param == "text":
        config = replace(config, data=replace(config.data, text=str(shapes_texts(folder / "captions"))))
    Trainer(config, say=lambda text: None).run()
    return folder / "run"


@pytest.fixture
def source(run: Path) -> ModelSource:
    source = open_source(run, None, (), torch.float32, "cpu")
    assert source.network is not None
    stirred(source.network)
    return source


def plan_for(source: ModelSource, marks: str) -> Plan:
    """Returns a plan of C, computed, K, half of it; digits are orders of reuse, a and b are 0 and 1 of half of it."""
    whole = plain_plan(source.whole, "ddim", len(marks), 4.0)
    halves: dict[str, Any] = {"K": "kept", "a": "kept", "b": "kept"}
    orders = {"a": 0, "b": 1}
    rows = [
        replace(row, compute=mark in "CK", guidance=halves.get(mark, "both"),
                order=0 if mark in "CK" else orders[mark] if mark in orders else int(mark))
        for row, mark in zip(whole.rows, marks, strict=True)
    ]  # fmt: skip
    return replace(whole, rows=tuple(rows))


def drawn(source: ModelSource, plan: Plan, graphs: bool, numbers: range = range(2), seen: object = None) -> Tensor:
    condition = source.condition_for(numbers, 0)
    denoiser = source.denoiser(source.model, condition.given, condition.null, 4.0)
    noise = source.noise(numbers, source.shape, 0)
    return source.follow(plan, denoiser, noise, True, graphs=graphs, **({"seen": seen} if seen else {}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("marks", "captures"), [("CC01C2C12C", 2), ("CCCC", 1), ("CKKbKaC0C", 4)], ids=["reuse", "lossless", "guidance"]
)
def test_two_graphs_a_shape(marks: str, captures: int, source: ModelSource, played: Played) -> None:
    """One for computed and one for reused steps, each for the whole batch and, if guidance is kept, for half of it."""
    plan = plan_for(source, marks)
    want = [drawn(source, plan, False, numbers) for numbers in (range(2), range(2, 4))]
    got = [drawn(source, plan, True, numbers) for numbers in (range(2), range(2, 4))]
    # the second batch, of other labels, replays the graphs of the first
    assert played.captures == captures
    assert played.replays == 2 * len(marks)
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(got, want, strict=True))
    assert relative_error(want[0], drawn(source, plan_for(source, "C" * len(marks)), False)) > 1e-3 or captures == 1


def test_the_loop_waits_for_nothing(source: ModelSource, played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first and the last step the host reads no tensor."""
    plan = plan_for(source, "CC01C2C12C")
    drawn(source, plan, True)
    waits: list[str] = []
    steps: list[int] = []

    def watched(name: str) -> Any:
        own = getattr(Tensor, name)

        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if 0 < len(steps) < len(plan.rows) and not played.playing:
                waits.append(name)
            return own(self, *args, **kwargs)

        return method

    for name in WAITS:
        monkeypatch.setattr(Tensor, name, watched(name))
    drawn(source, plan, True, seen=lambda number, *rest: steps.append(number))
    assert len(steps) == 10 and played.captures == 2 and not waits
    # what would be seen
    drawn(source, plan, True, seen=lambda number, x, start: steps.remove(number) or float(start.sum()))
    assert "__float__" in waits


def test_another_plan_has_graphs_of_its_own(source: ModelSource, played: Played) -> None:
    for n, marks in enumerate(("CC01CC", "CC01CC", "CC10CC"), 1):
        plan = plan_for(source, marks)
        assert relative_error(drawn(source, plan, True), drawn(source, plan, False)) <= 1e-5
        assert played.captures == (2 if n < 3 else 4)
