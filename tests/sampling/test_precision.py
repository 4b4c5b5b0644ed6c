"""A precision for each step: which layers run when, graphs a precision, and models that do not have it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latte_fast
from latte_fast import testing
from latte_fast.modules.linear8 import Linear8
from latte_fast.modules.precision import Precisions
from latte_fast.runs.plan import Plan, load_plan
from latte_fast.sampling.planned import plain_plan
from latte_fast.sampling.request import Request
from latte_fast.sampling.sample import open_source
from latte_fast.sampling.source import ModelSource
from latte_fast.training import Trainer
from tests.helpers.played import Played
from tests.helpers.tiny_run import stirred, tiny

COUNT = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision") / "run"
    Trainer(tiny(folder, steps=1), say=lambda text: None).run()
    return folder


@pytest.fixture
def source(run: Path) -> ModelSource:
    source = open_source(run, None, (), torch.float32, "cpu")
    assert source.network is not None
    stirred(source.network)
    return source


def plan_for(source: ModelSource, precise: tuple[str, ...] = (), reused: tuple[int, ...] = ()) -> Plan:
    whole = plain_plan(source.whole, "ddim", COUNT, 4.0)
    rows = tuple(replace(row, compute=i not in reused) for i, row in enumerate(whole.rows))
    return replace(whole, rows=rows).in_precision("fp8", precise)


def drawn(
    source: ModelSource, plan: Plan, graphs: bool = False, seen: Callable[..., object] = lambda *_: None
) -> Tensor:
    condition = source.condition_for(range(2), 0)
    denoiser = source.denoiser(source.model, condition.given, condition.null, 4.0)
    return source.follow(plan, denoiser, source.noise(range(2), source.shape, 0), graphs, seen, graphs)


def kinds(model: nn.Module) -> str:
    found = {type(layer) for name, layer in model.named_modules() if name.endswith(("qkv", "fc1", "fc2"))}
    return {Linear8: "8", nn.Linear: "6"}[found.pop()] if len(found) == 1 else "mixed"


def test_each_step_is_that_of_its_precision(source: ModelSource) -> None:
    """The first and last are the 16-bit model's bit for bit, those between the 8-bit model's, and it stays 8-bit."""
    net: Any = source.network
    exact: list[Tensor] = []
    drawn(source, plan_for(source).in_precision("16"), seen=lambda i, x, start: exact.append(start))
    latte_fast.quantize(net)
    marks: list[str] = []
    starts: list[Tensor] = []
    points: list[Tensor] = []

    def seen(i: int, x: Tensor, start: Tensor) -> None:
        marks.append(kinds(net))
        starts.append(start)
        points.append(x)

    plan = plan_for(source, ("first", "last"))
    drawn(source, plan, seen=seen)
    assert "".join(marks) == "688886" and kinds(net) == "8" and "precision" not in vars(net)
    assert torch.equal(starts[0], exact[0]) and not torch.equal(starts[1], exact[1])
    condition = source.condition_for(range(2), 0)
    for unquantised in (False, True):
        if unquantised:
            latte_fast.unquantize(net)
        denoiser = source.denoiser(source.model, condition.given, condition.null, 4.0)
        with torch.no_grad():
            again = [
                denoiser(x, row, torch.tensor(row.time), i)
                for i, (x, row) in enumerate(zip(points, plan.rows, strict=True))
            ]
        same = [torch.equal(a, b) for a, b in zip(again, starts, strict=True)]
        assert same == [(i in (0, COUNT - 1)) == unquantised for i in range(COUNT)]


def test_steps_of_int8(source: ModelSource) -> None:
    net: Any = source.network
    exact, starts, marks = [], [], []
    drawn(source, plan_for(source).in_precision("16"), seen=lambda i, x, start: exact.append(start))
    latte_fast.quantize(net, "int8")
    plan = plan_for(source).in_precision("int8", ("first", "last"))
    drawn(source, plan, seen=lambda i, x, start: (starts.append(start), marks.append(kinds(net))))
    assert "".join(marks) == "688886" and kinds(net) == "8"
    assert torch.equal(starts[0], exact[0]) and not torch.equal(starts[1], exact[1])
    with pytest.raises(
        ValueError, match="precision of step 1 must be int8 or 16, which is what the model has, got fp8"
    ):
        drawn(source, plan_for(source, ("first",)))


def test_an_error_leaves_the_model_in_8_bits(source: ModelSource) -> None:
    latte_fast.quantize(source.network)

    def stop(i: int, x: Tensor, start: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(source, plan_for(source, ("first",)), seen=stop)
    assert kinds(source.network) == "8" and "precision" not in vars(source.network)  # type: ignore[arg-type]
    with Precisions(source.network).attached(), pytest.raises(ValueError, match="in another run of two precisions"):
        drawn(source, plan_for(source, ("first",)))


@pytest.mark.parametrize(("reused", "captures"), [((), 2), ((2, 4), 3)], ids=["computed", "reuse"])
def test_a_graph_a_precision(reused: tuple[int, ...], captures: int, source: ModelSource, played: Played) -> None:
    """Two for computed steps, however often they change; one for reused ones; the next batch captures none."""
    latte_fast.quantize(source.network)
    plan = plan_for(source, ("first", "2-3", "last"), reused)
    want = drawn(source, plan)
    for _ in range(2):
        assert testing.relative_error(drawn(source, plan, True), want) <= 1e-5
    assert played.captures == captures and played.replays == 2 * COUNT
    assert testing.relative_error(drawn(source, plan_for(source, (), reused)), want) > 1e-4


def test_a_request_names_its_precise_steps(source: ModelSource, run: Path) -> None:
    """On a sampler without a plan, too; without names all steps are in 8 bits."""
    net: Any = source.network
    seen: list[str] = []
    call = source.model
    source.model = lambda *args, **given: (seen.append(kinds(net)), call(*args, **given))[1]
    request = Request(count=2, steps=COUNT, precise_steps=("0-1,last",))
    with pytest.raises(ValueError, match="precise steps must be left out for a model without 8-bit layers"):
        source.draw(request, range(2))
    report = latte_fast.quantize(net)
    for asked, want in ((request, "668886"), (Request(count=2, steps=COUNT), "888888")):
        seen.clear()
        source.draw(asked, range(2))
        assert "".join(seen) == want
    assert "precise_steps" in source.notes(request) and "precise_steps" not in source.notes(Request())
    # four bytes a weight become one, beside a scale for each output channel
    taken = [layer for layer in net.modules() if type(layer) is Linear8]
    assert report.before == report.beside == 4 * sum(x.weight.numel() for x in taken)
    assert report.after == sum(x.weight.numel() + 4 * x.out_features for x in taken)
    assert "beside the 0.0 MB of before, which are kept" in str(report)
    for frames, method, match in ((8, "ddim", "frames must be the model's 2 with"), (None, "ddpm", "other than ddpm")):
        with pytest.raises(ValueError, match=f"{match}.*a precision for each step"):
            source.plan_for(Request(steps=COUNT, frames=frames, method=method, precise_steps=("last",)))  # type: ignore[arg-type]


def test_plans_with_precisions_as_files(source: ModelSource, tmp_path: Path) -> None:
    """A plan made for 16 bits is followed by the model that has kept them, and refused by one that has not."""
    plan = replace(plan_for(source).in_precision("16"), made_for=source.made_for())
    mixed = plan.in_precision("fp8", ("0", "4-5"))
    files = {name: tmp_path / f"{name}.json" for name in ("whole", "mixed")}
    plan.save(files["whole"])
    mixed.save(files["mixed"])
    assert load_plan(files["mixed"]) == mixed and mixed.summary().endswith("0 reused, 3 in 16 bits, 3 in fp8")
    lines = str(mixed.table()).splitlines()
    assert lines[-7].endswith("guidance  precision") and lines[-6].endswith("16 bits") and lines[-5].endswith("  fp8")
    assert "precision" not in plan.table() and "bits" not in plan.summary()
    followed = {name: Request(steps=COUNT, plan=str(file)) for name, file in files.items()}
    with pytest.raises(ValueError, match=r"precision of step 1 must be 16, .* got fp8; --precision fp8"):
        source.plan_for(followed["mixed"])
    latte_fast.quantize(source.network)
    source._made_for = None
    assert [source.plan_for(request) for request in followed.values()] == [plan, mixed]
    every = source.plan_for(replace(followed["whole"], precise_steps=("last",)))
    assert every is not None and every.precisions == ["fp8", "16"]
    latte_fast.unquantize(source.network)
    latte_fast.quantize(source.network, keep=False)
    with pytest.raises(
        ValueError, match="precision of step 0 must be fp8, as the model's 16-bit weights were not kept"
    ):
        source.plan_for(followed["whole"])
    with pytest.raises(ValueError, match="precision of step 5 must be fp8, as"):
        source.plan_for(Request(steps=COUNT, precise_steps=("last",)))


@pytest.mark.parametrize("name", ["6", "4-6", "3-2", "-1", "1-2-3", "middle", "", "1.5"])
def test_names_of_no_steps(name: str, source: ModelSource) -> None:
    with pytest.raises(ValueError, match="precise steps must be first, last, numbers below 6 or ranges such as 0-4"):
        plan_for(source).in_precision("fp8", ("first", name))
    with pytest.raises(ValueError, match="precision of step 0 must be one of 16, fp8, int8, got 'fp4'"):
        plan_for(source).in_precision("fp4")
