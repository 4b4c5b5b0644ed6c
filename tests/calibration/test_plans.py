"""Plans: what they may hold, how they are kept, found and followed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import latte_fast
from latte_fast import testing
from latte_fast.calibration.fits import each_psnr, marked, psnr
from latte_fast.calibration.paths import hand_made, marks_of, stretched
from latte_fast.calibration.plans import find_plans
from latte_fast.calibration.search import Shape, calibrate, open_search
from latte_fast.media.pixels import normalise
from latte_fast.runs.plan import Plan, PlanRow, digest, load_plan, plan_path
from latte_fast.sampling.planned import plain_plan, whole_process
from latte_fast.sampling.request import Request
from latte_fast.sampling.sample import open_source
from latte_fast.sampling.source import ModelSource
from latte_fast.training import DiffusionConfig, ModelConfig, Trainer
from tests.helpers.tiny_run import tiny

MODEL = ModelConfig(patch_size=4, hidden_size=32, depth=4, num_heads=2, class_dropout_prob=0.2, learn_sigma=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights are refilled after training, so that its blocks add something at every step."""
    out = tmp_path_factory.mktemp("run") / "run"
    config = tiny(out, model=MODEL, steps=4, diffusion=DiffusionConfig(prediction="start_x"))
    assert Trainer(config, say=lambda text: None).run() == 4
    return out


@pytest.fixture
def source(run: Path) -> ModelSource:
    source = open_source(run, None, (), torch.float32, "cpu")
    assert source.network is not None
    testing.refill(source.network)
    return source


def plain_of(**changes: Any) -> Plan:
    return replace(plain_plan(whole_process(DiffusionConfig(), True), "ddim", 8, 4.0), **changes)


def test_plain_plan_equals_the_loop(source: ModelSource) -> None:
    """The flat loop over a plan that computes every step, against the loop that `exact` runs."""
    request = Request(count=2, steps=8, method="ddim")
    want = source.draw(request, [0, 1])[0]
    condition = source.condition_for([0, 1], 0)
    denoiser = source.denoiser(source.model, condition.given, condition.null, 4.0)
    plan = plain_plan(source.whole, "ddim", 8, 4.0)
    got = source.follow(plan, denoiser, source.noise([0, 1], source.shape, 0))
    shown = source.vae.decode(got)
    assert psnr(normalise(want.movedim(-1, -3)), shown.clamp(-1, 1)) > 50  # pixels are rounded to 8 bits


@pytest.mark.parametrize("method", ["unipc", "heun"])
def test_methods_of_the_planned_loop(source: ModelSource, method: Any) -> None:
    calls: list[int] = []
    videos, _ = source.draw(Request(count=1, steps=6, method=method), [0], lambda: calls.append(1))
    assert videos.shape == (1, 2, 8, 8, 3)
    assert len(calls) == {"unipc": 6, "heun": 11}[method]


def test_found_plans_lose_what_they_say(source: ModelSource) -> None:
    """A plan is measured by running it, is better than masks made by hand, and computes what it says."""
    request = Request(count=2, steps=20)
    tiers, curve = calibrate(source, request, {"some": 25.0})
    found = tiers["some"]
    assert found.sure >= 25 and found.plan.computed < 20
    with pytest.raises(ValueError, match=r"psnr must be at most the .* dB that reuse reaches here, got 190"):
        calibrate(source, Request(count=1, steps=12), {"some": 190.0})
    assert [f.plan.computed for f in curve] == sorted({f.plan.computed for f in curve})
    condition = source.condition_for([0, 1], 0)
    denoiser = source.denoiser(source.model, condition.given, condition.null, 4.0)
    noise = source.noise([0, 1], source.shape, 0)
    runs: list[int] = []
    assert source.network is not None
    handle = source.network.blocks[0].register_forward_hook(lambda *args: runs.append(1))
    got = source.follow(found.plan, denoiser, noise)
    handle.remove()
    exact = source.follow(plain_plan(source.whole, "ddim", 20, 4.0), denoiser, noise)
    assert psnr(got, exact) == pytest.approx(found.psnr, abs=0.01)
    assert len(runs) == found.plan.computed
    plain = plain_plan(source.whole, "ddim", 20, 4.0)
    for steps in hand_made(20, found.plan.computed).values():
        marks = marks_of(20, stretched(steps, 1, 1))
        by_hand = replace(plain, rows=tuple(marked(row, m) for row, m in zip(plain.rows, marks, strict=True)))
        assert found.psnr >= psnr(source.follow(by_hand, denoiser, noise), exact)


def test_a_plan_is_judged_on_other_samples(source: ModelSource) -> None:
    """What is promised is the mean of samples that were not searched on, less half its standard error."""
    search = open_search(source, Request(count=2, steps=12))
    found = search.measured_at(8)
    numbers = range(2, 6)
    condition = source.condition_for(numbers, 0)
    noise = source.noise(numbers, source.shape, 0)
    exact, film = (
        source.follow(plan, source.denoiser(source.model, condition.given, condition.null, 4.0), noise)
        for plan in (plain_plan(source.whole, "ddim", 12, 4.0), found.plan)
    )
    want = each_psnr(film, exact)
    assert found.unseen is not None
    torch.testing.assert_close(found.unseen, want, rtol=0, atol=1e-3)
    assert found.measured_plan().measured["psnr"] == pytest.approx(float(want.mean()), abs=0.01)
    assert found.sure == pytest.approx(float(want.mean()) - 0.5 * max(1.0, float(want.std()) / 2), abs=1e-3)
    calls = sum(not row.compute and not row.repeat for row in found.plan.rows)
    assert found.value == pytest.approx(found.psnr - 0.06 * calls)
    for budgets, least in (([8, 9], found.sure - 0.1), ([8], found.sure + 20)):
        reached = search.tier(budgets, least)
        assert reached is (found if least < found.sure else None)


def test_a_number_of_steps_takes_the_better_of_two_plans(source: ModelSource) -> None:
    """The plan is the shape of all numbers or the late-dense mask, whichever keeps more, and each wins somewhere."""
    search = open_search(source, Request(count=2, steps=20))
    ahead = set()
    for shape in (search.shape, Shape(0, 0, search.shape.every)):  # the second is dense early
        search.shape = shape
        for n in range(7, 12):
            shaped = search.tried(search.shaped(shape, n))
            mask = search.tried(stretched(hand_made(20, n)["late-dense"], 1, search.every[shape.every]))
            assert search.budget(n).value == max(shaped.value, mask.value)
            ahead.add(mask.value > shaped.value)
    assert ahead == {False, True}


def test_files(run: Path, tmp_path: Path) -> None:
    """calibrate writes plans and curves beside the run; sample follows them, and refuses those of other weights."""
    lines: list[str] = []
    written = find_plans(run, psnr=20.0, steps=12, samples=2, say=lines.append)
    (path,) = written
    assert len(lines) == 1 and "psnr-20: to the converged films" in lines[0] and "nearer" in lines[0]
    assert path == run / "plans" / "psnr-20.json" and (run / "plans" / "curves.md").is_file()
    assert plan_path(run, "psnr-20") == str(path) and plan_path(run, "exact") == ""
    plan = load_plan(path)
    assert plan == written[path].measured_plan() and "computed" in plan.table()
    drawn = latte_fast.sample(run, samples=2, steps=12, plan=path, progress=False)
    assert drawn is not None and drawn.videos.shape[0] == 2
    with pytest.raises(ValueError, match="steps must be 12, for which the plan was made, got 50"):
        latte_fast.sample(run, samples=1, plan=path, progress=False)
    with pytest.raises(ValueError, match="guidance must be 4"):
        latte_fast.sample(run, samples=1, steps=12, guidance=2.0, plan=path, progress=False)
    with pytest.raises(ValueError, match="frames must be the model's 2 with a plan"):
        latte_fast.sample(run, samples=1, steps=12, frames=3, plan=path, progress=False)
    with pytest.raises(ValueError, match="method must be other than ddpm with a plan"):
        latte_fast.sample(run, samples=1, steps=12, method="ddpm", plan=path, progress=False)
    trained = latte_fast.load(run)
    with torch.no_grad():
        trained.model.blocks[0].mlp.fc1.bias.add_(1)
    with pytest.raises(ValueError, match="weights must be those that the plan was made for"):
        latte_fast.sample(trained, samples=1, steps=12, plan=path, progress=False)
    edited = tmp_path / "edited.json"
    body = json.loads(path.read_text())
    body["rows"][0]["predict"][0] += 0.1
    edited.write_text(json.dumps(body))
    with pytest.raises(ValueError, match="was changed after it was written"):
        load_plan(edited)
    newer = {"weights": (), "fitted_correct": None, "fitted_predict": None, "repeat": False}
    with_orders = replace(plan, rows=tuple(replace(row, **newer) for row in plan.rows))  # type: ignore[arg-type]
    with_orders.save(edited)
    body = json.loads(edited.read_text())
    del body["sha256"], body["format"]
    for row in body["rows"]:
        for name in (*newer, "precision"):  # which format 1 does not have
            del row[name]
    edited.write_text(json.dumps({"format": 1, "sha256": digest(body), **body}))
    assert load_plan(edited) == with_orders
    edited.write_text(json.dumps({"format": 3, "sha256": digest(body), **body}))
    with pytest.raises(ValueError, match=r"rows of .* must have"):
        load_plan(edited)
    edited.write_text("{}")
    with pytest.raises(ValueError, match="must be a plan that calibrate wrote"):
        load_plan(edited)
    with pytest.raises(ValueError, match="quality must be one of exact, lossless, psnr-20"):
        plan_path(run, "fast")


def test_what_a_plan_may_hold() -> None:
    rows = plain_of().rows
    reused = replace(rows[3], compute=False)
    for changed, message in (
        ((replace(rows[0], compute=False), *rows[1:]), "the first step must be computed"),
        ((*rows[:-1], replace(rows[-1], compute=False)), "the last step must be computed"),
        ((*rows[:1], replace(rows[1], compute=False, order=1), *rows[2:]), "order of step 1 must be below the 1 steps"),
        ((replace(rows[0], guidance="kept"), *rows[1:]), "step 0 must not keep a guidance"),
        ((*rows[:2], replace(rows[2], guidance="kept"), reused, *rows[4:]), "guidance of step 3 must be kept"),
        ((*rows[:2], replace(rows[2], guidance="odd"), *rows[3:]), "guidance of step 2 must be both, kept or off"),  # type: ignore[arg-type]
        (rows[:1], "rows must be two or more"),
    ):
        with pytest.raises(ValueError, match=message):
            plain_of(rows=changed)
    without = [replace(row, guidance="kept") for row in (rows[2], reused)]
    kept = plain_of(rows=(*rows[:2], *without, *rows[4:]))
    assert kept.forwards == 6.5 and kept.computed == 7


def test_bad_input(run: Path, tmp_path: Path) -> None:
    for given, message in (
        ({"psnr": 0.0}, r"psnr must be in \(0, 80\] dB, got 0"),
        ({"method": "ddpm"}, "method must be another than ddpm"),
        ({"steps": 1}, "steps must be at least 8, got 1"),
        ({"speed": 0.5}, r"speed must be from 1 to 7\.14 at 50 steps, got 0\.5"),
        ({"speed": 9.0, "steps": 20}, r"speed must be from 1 to 5\.00 at 20 steps, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            find_plans(run, out=tmp_path / "plans", **given)
    with pytest.raises(ValueError, match="run must be the folder of a run"):
        find_plans(tmp_path / "none")
    assert not list(tmp_path.rglob("*.json"))
    assert PlanRow.__dataclass_params__.frozen  # type: ignore[attr-defined]
