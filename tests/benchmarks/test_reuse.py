"""Published rules of reuse that plans race against: their arithmetic, their costs, and that nothing is left behind."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.reuse.race import Race, attention_share
from benchmarks.reuse.rules import at_steps, computed_by, magcache, taylorseer, teacache, threshold_for
from benchmarks.reuse.store import OutOfTime, Store
from benchmarks.reuse.tables import write_tables
from latte_fast.calibration.fits import marked
from latte_fast.calibration.paths import marks_of, stretched
from latte_fast.modules.stack_reuse import StackReuse, extrapolation
from latte_fast.sampling.sample import open_source
from latte_fast.training import DiffusionConfig, ModelConfig, Trainer
from tests.helpers.tiny_run import stirred, tiny

MODEL = ModelConfig(patch_size=4, hidden_size=32, depth=4, num_heads=2, class_dropout_prob=0.2, learn_sigma=False)
STEPS = 12


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Race:
    out = tmp_path_factory.mktemp("race") / "run"
    Trainer(tiny(out, model=MODEL, steps=1, diffusion=DiffusionConfig(prediction="start_x")), say=lambda _: None).run()
    source = open_source(out, None, (), torch.float32, "cpu")
    assert source.network is not None
    stirred(source.network)
    return Race(source, "ddim", STEPS, 4.0, 2)


class Kept:
    """What a rule asks of its denoiser: the sums that are kept, here without values."""

    def __init__(self, *places: int):
        self.reuse = StackReuse()
        self.reuse.kept = [(float(p), torch.zeros(1)) for p in places]


def test_taylor_series_of_polynomials() -> None:
    """Order 1 is exact for lines; order 2 for parabolas up to what backward differences lack, k * gap / 2 * f''."""
    time = torch.tensor(0.0)
    denoiser = Kept(8, 5, 2)
    line = taylorseer((), 1)(denoiser, time, time, 10)  # type: ignore[arg-type]
    assert line == pytest.approx(extrapolation([8, 5], 10))
    weights = taylorseer((), 2)(denoiser, time, time, 10)  # type: ignore[arg-type]
    assert weights is not None
    found = sum(w * p**2 for w, p in zip(weights, (8, 5, 2), strict=True))
    assert found == pytest.approx(10**2 - 2 * 3)
    assert taylorseer((10,), 2)(denoiser, time, time, 10) is None  # type: ignore[arg-type]


def test_computed_steps_are_those_of_the_rule(race: Race) -> None:
    steps = [0, 1, 3, 6, 9, 11]
    by_rule = race.ruled(at_steps(steps, 1))
    marks = marks_of(STEPS, stretched(steps, 1, 1))
    plan = replace(race.plain, rows=tuple(marked(row, m) for row, m in zip(race.plain.rows, marks, strict=True)))
    assert by_rule[0] == 6 and by_rule[1] == pytest.approx(race.plan("plan", plan).psnr, abs=0.01)
    for make in (lambda d: magcache(race.trajectory, d, 6, 0.1), lambda d: teacache(race.trajectory, d)):
        computed = [race.ruled(make(threshold))[0] for threshold in (1e-9, 1e9)]
        assert computed[0] == STEPS and computed[1] <= 4
    for threshold in (0.01, 0.1):  # found without the model
        rule = magcache(race.trajectory, threshold, 6, 0.1)
        assert computed_by(magcache(race.trajectory, threshold, 6, 0.1), STEPS) == race.ruled(rule)[0]
    found = threshold_for(lambda d: race.ruled(magcache(race.trajectory, d, 6, 0.1)), 6, 1e-4, 1e2)
    assert found is not None and found[1] >= 6


def test_every_contender_is_run(race: Race) -> None:
    assert [r.name for r in race.contenders(6)] == ["TeaCache", "MagCache", "TaylorSeer"]
    assert race.masks(6).psnr > 0
    low, high = race.bracket(6)
    assert 1e-3 <= low < high <= 1e2 and race.tea
    share = attention_share(race.source.adapter.config)
    assert 0.3 < share < 0.5
    own = [block.attn for block in race.net.blocks]
    pab, faster = race.broadcasts(share)
    assert STEPS * (1 - share) < pab.forwards < STEPS
    # from the fifth step on, every other step without attention, and most without the unguided half
    assert 0.4 * STEPS < faster.forwards < 0.8 * STEPS
    assert all(block.attn is attention for block, attention in zip(race.net.blocks, own, strict=True))
    assert torch.equal(race.film(race.source.follow(race.plain, race.denoiser(), race.noise)), race.exact)


def test_a_stopped_table_goes_on(tmp_path: Path) -> None:
    """A figure that is kept is not measured again; what is missing leaves its cell empty."""
    path = tmp_path / "classes.json"
    store = Store(path)
    assert store.get("loss/high", lambda: {"forwards": 16.5, "psnr": 40.6, "what": "C.C"})["psnr"] == 40.6
    late = Store(path, until=0.0)
    assert late.get("loss/high", lambda: None) is not None
    with pytest.raises(OutOfTime):
        late.get("loss/fast", lambda: pytest.fail("measured after its time"))
    again = Store(path)
    again.get("loss/high", lambda: pytest.fail("measured twice"))
    for name, psnr in (("plan", 33.0), ("best mask", 30.5)):
        again.put(f"budget/8/{name}", {"forwards": 8.0, "psnr": psnr, "what": ""})
    again.put("contender/8/TeaCache", {"forwards": 9, "psnr": 21.04, "what": ""})
    again.put("converged/dpm++/8 steps", 30.2)
    write_tables(tmp_path, [again])
    text = (tmp_path / "reuse.md").read_text()
    assert "- high: 16.5 forwards, 40.6 dB, `C.C`" in text
    assert "| 8 | 33.0 | 30.5 | 21.0 at 9 | +2.5 |" in text
    assert "| 8 | 30.2 |  |" in text
