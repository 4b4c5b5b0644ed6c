"""Plans for every family of models and every sampler: found, followed by sample, and modulations out of tables."""

from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast.calibration.fits import psnr
from latte_fast.calibration.plans import find_plans
from latte_fast.calibration.search import calibrate
from latte_fast.data import DataConfig
from latte_fast.media.pixels import normalise
from latte_fast.sampling.planned import plain_plan
from latte_fast.sampling.request import Request
from latte_fast.sampling.sample import open_source
from latte_fast.sampling.source import ModelSource
from latte_fast.training import DiffusionConfig, ModelConfig, Trainer
from tests.helpers.texts import shapes_texts
from tests.helpers.tiny_run import stirred, tiny, tiny_flex

MODEL = ModelConfig(patch_size=4, hidden_size=32, depth=4, num_heads=2, class_dropout_prob=0.2, learn_sigma=False)
START = DiffusionConfig(prediction="start_x")
STEPS = 10


def run_of(family: str, folder: Path) -> Path:
    out, given = folder / family, {"steps": 1, "diffusion": START}
    if family == "text":
        texts = DataConfig(kind="shapes", clips=11, text=str(shapes_texts(folder / "captions")))
        config = tiny(out, model=MODEL, data=texts, **given)
    elif family == "flex":
        config = tiny_flex(out, steps=1)
    else:
        diffusion = DiffusionConfig(prediction="flow") if family == "flow" else START
        config = tiny(out, model=MODEL, images=int(family == "joint"), steps=1, diffusion=diffusion)
    Trainer(config, say=lambda text: None).run()
    return out


def refilled(run: Path) -> ModelSource:
    """Returns the source of a run whose blocks add something at every step."""
    source = open_source(run, None, (), torch.float32, "cpu")
    assert source.network is not None
    stirred(source.network)
    return source


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of("classes", tmp_path_factory.mktemp("classes"))


def follows(source: ModelSource, path: Path, **given: Any) -> None:
    """A plan is found and written, `sample` follows it, and its blocks run at the computed steps alone."""
    request = Request(count=1, steps=STEPS, **given)
    found, _ = calibrate(source, request, {"some": 12.0})
    best = found["some"]
    assert best.expected >= 12.0 and best.unseen is not None and best.plan.computed < len(best.plan.rows)
    best.measured_plan().save(path)
    ran: list[int] = []
    blocks: Any = getattr(source.network, "blocks", ())
    next(iter(blocks)).register_forward_hook(lambda *args: ran.append(1))
    drawn, _ = source.draw(Request(count=1, steps=STEPS, plan=str(path), **given), [0])
    assert len(ran) == best.plan.computed
    exact = source.draw(request, [0])[0]
    shown = psnr(*(normalise(x.movedim(-1, -3)) for x in (drawn, exact)))
    assert shown == pytest.approx(best.psnr, abs=1.0) or shown > best.psnr or best.psnr > 50  # of rounded pixels


@pytest.mark.parametrize("family", ["joint", "text", "flex", "flow"])
def test_families(family: str, tmp_path: Path) -> None:
    source = refilled(run_of(family, tmp_path))
    lossless_is_lossless(source)
    follows(source, tmp_path / "plan.json")


@pytest.mark.parametrize("method", ["dpm++", "unipc", "heun"])
def test_samplers(method: str, classes: Path, tmp_path: Path) -> None:
    follows(refilled(classes), tmp_path / "plan.json", method=method)


def lossless_is_lossless(source: ModelSource) -> None:
    """Every step computed, with modulations out of a table: at least 60 dB to the model's own."""
    condition = source.condition_for([0, 1], 0)
    noise = source.noise([0, 1], source.shape, 0)
    plan = plain_plan(source.whole, "ddim", STEPS, 4.0, source.adapter.step_keywords(STEPS))
    drawn = []
    for tables in (False, True):
        denoiser = source.denoiser(source.model, condition.given, condition.null, 4.0)
        drawn.append(source.follow(plan, denoiser, noise, tables))
        assert (denoiser.table is not None) == tables
    assert psnr(drawn[1], drawn[0]) >= 60 and drawn[0].std() > 0.1


def test_lossless_classes(classes: Path, tmp_path: Path) -> None:
    source = refilled(classes)
    lossless_is_lossless(source)
    exact, lossless = (source.draw(Request(count=2, steps=STEPS, lossless=on), [0, 1])[0] for on in (False, True))
    assert (exact.int() - lossless.int()).abs().max() <= 1
    for given, message in (
        ({"method": "ddpm"}, "method must be other than ddpm with lossless, which holds no noise"),
        ({"eta": 0.5}, "eta must be left out with lossless"),
        ({"plan": "x.json"}, "lossless must be left out with a plan"),
    ):
        with pytest.raises(ValueError, match=message):
            Request(lossless=True, **given)
    with pytest.raises(ValueError, match="frames must be the model's 2 with lossless, as windows are not planned"):
        source.draw(Request(lossless=True, steps=STEPS, frames=3), [0])


def test_a_plan_of_a_speed(classes: Path, tmp_path: Path) -> None:
    written = find_plans(classes, speed=2.5, steps=STEPS, samples=1, out=tmp_path)
    ((path, found),) = written.items()
    assert path.name == "speed-2.5.json" and found.plan.computed == 4 and found.speed == 2.5
