"""A FlexLatte's run: densities in training and sampling, weights from a dense run, stops, ranks, files."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import latte_fast
from latte_fast.cli.main import main
from latte_fast.config import LatteConfig
from latte_fast.data.seeding import SampleKey
from latte_fast.diffusion import sample_timesteps
from latte_fast.diffusion.schedule import space_timesteps
from latte_fast.flex_config import FlexLatteConfig, density_schedule
from latte_fast.models.adapter import DataSizes
from latte_fast.models.checkpoint import read_checkpoint
from latte_fast.models.families import adapter_of
from latte_fast.models.flexdit.adapter import FlexLatteAdapter
from latte_fast.models.flexdit.model import FlexLatte, FlexLatteIMG
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.runs.config import DiffusionConfig
from latte_fast.runs.convert import convert
from latte_fast.runs.log import LOG, read_log
from latte_fast.sampling.engine import generate, sampling_process
from latte_fast.training import Trainer
from latte_fast.training.objectives.densities import Densities
from tests.helpers.tiny_run import FLEX, tiny


def lines(out: Path) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in read_log(out / LOG)]


def adapter(sides: tuple[int, ...] = (1, 2, 3)) -> FlexLatteAdapter:
    return FlexLatteAdapter(FlexLatteConfig(depth=6, layout="PD GSRD", sides=sides))


@pytest.mark.parametrize("process", [DiffusionConfig(), DiffusionConfig(timesteps="lognormal", shift=-0.5, steps=400)])
def test_intervals_are_unbiased(process: DiffusionConfig) -> None:
    """Each by its share of time steps: those of all updates are spread as without densities."""
    densities = Densities(adapter(), process, seed=3)
    schedule = density_schedule(process.steps, (1, 2, 3))
    drawn = []
    source = torch.Generator().manual_seed(0)
    for update in range(4000):
        steps, keywords = densities.at(update)
        assert steps is not None
        t = sample_timesteps(process.timesteps, 4, process.steps, generator=source, mean=process.shift, within=steps)
        assert all(schedule[process.steps - 1 - i] == keywords["side"] for i in t.tolist())
        drawn.append(t)
    plain = sample_timesteps(process.timesteps, 16000, process.steps, generator=source, mean=process.shift)
    bins = process.steps / 10
    shares = [torch.histc(t.float() / bins, 10, 0, 10) / 16000 for t in (torch.cat(drawn), plain)]
    assert (shares[0] - shares[1]).abs().max() < 0.015
    assert Densities(adapter(), process, seed=3).at(77) == densities.at(77)
    others = [Densities(adapter(), process, seed=4).at(i) for i in range(50)]
    assert others != [densities.at(i) for i in range(50)]


def test_fewer_steps_take_the_sides_of_training() -> None:
    whole = density_schedule(1000, (4, 5, 6, 7, 8))
    for steps in (20, 50, 250):
        kept = space_timesteps(1000, str(steps))[::-1]
        assert [whole[999 - t] for t in kept] == list(density_schedule(steps, (4, 5, 6, 7, 8)))


def test_models_without_densities_draw_from_all_steps() -> None:
    assert Densities(LatteAdapter(LatteConfig()), DiffusionConfig(), seed=0).at(5) == (None, {})


def test_a_step_has_one_density(tmp_path: Path) -> None:
    """In all of its micro-batches: the time steps of a batch, and the side that the model is called with."""
    trainer = Trainer(tiny(tmp_path / "run", model=FLEX, micro_batch=2))
    objective: Any = trainer.objective
    sides: list[int] = []
    call = objective.learner.call
    objective.learner.call = lambda *args, **kwargs: (sides.append(kwargs["side"]), call(*args, **kwargs))[1]
    batches = trainer.batches()
    for _ in range(6):
        trainer.update(batches)
    assert sides[::2] == sides[1::2] and set(sides) == {1, 2, 3}
    schedule = density_schedule(1000, (1, 2, 3))
    items: Any = objective.items()
    for number in range(24):
        t = int(items[SampleKey(0, number % 11, number)]["t"])
        assert schedule[999 - t] == sides[2 * (number // 4)]


def test_resumes_exactly_and_in_micro_batches(tmp_path: Path) -> None:
    optim = replace(tiny("").optim, rate="constant")
    config = tiny(tmp_path / "whole", model=FLEX, optim=optim)
    assert Trainer(config).run() == 12
    whole = lines(tmp_path / "whole")
    for first, micro in ((4, None), (7, 1)):
        part = replace(config, out=str(tmp_path / f"stopped-{first}"), steps=first)
        Trainer(part).run()
        Trainer(replace(part, steps=12, micro_batch=micro), resume=True).run()
        again = lines(Path(part.out))
        if micro is None:
            assert again == whole
        torch.testing.assert_close(torch.tensor(again), torch.tensor(whole), rtol=1e-4, atol=0)


def helper(name: str, folder: Path, *args: str) -> str:
    command = [sys.executable, "-m", f"tests.helpers.{name}", str(folder), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow  # tests/runs/ kills a dense run by default
@pytest.mark.parametrize("count", [3, 20])
def test_kills_at_random_resume_bit_identical(tmp_path: Path, count: int) -> None:
    assert helper("kills", tmp_path, str(count), "5", "flex").startswith(f"{count} kills")


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("sharded",)], ids=["ddp", "fsdp"])
def test_two_ranks_equal_one(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Densities, time steps and noise are those of the sample numbers; runs move between ranks."""
    logs = json.loads(helper("spread_flex", tmp_path, *more).splitlines()[-1])
    alone = torch.tensor(logs.pop("one"), dtype=torch.float64)
    assert alone.shape == (6, 2) and alone[0, 0] != alone[1, 0]
    assert {"two", "two-accumulated", "moved", *(["sharded"] if more else [])} == logs.keys()
    for name, values in logs.items():
        got = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(got, alone, rtol=1e-5, atol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_starts_from_a_dense_run_and_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights layer for layer, at the command line; then samples with the side of each step, and a file."""
    dense = replace(FLEX, layout=None)
    Trainer(tiny(tmp_path / "dense", model=dense, steps=3)).run()
    weights = tmp_path / "dense" / "checkpoints" / "step-0000003" / "ema.safetensors"
    said: list[str] = []
    config = tiny(tmp_path / "flex", model=FLEX, steps=4, pretrained=str(weights))
    trainer = Trainer(config, say=said.append)
    assert "x q, kv or v of qkv" in said[0] and "x merging layers" in said[0]
    trainer.run()
    trained = latte_fast.load(tmp_path / "flex")
    assert type(trained.model) is FlexLatte and trained.adapter.name == "flex_latte"
    seen: list[int] = []
    forward = trained.model.forward
    monkeypatch.setattr(trained.model, "forward", lambda *a, **k: (seen.append(k["side"]), forward(*a, **k))[1])
    drawn = latte_fast.sample(trained, samples=2, steps=10, guidance=2.0, classes=[0, 1], progress=False)
    assert drawn is not None and seen == list(density_schedule(10, (1, 2, 3)))
    more = latte_fast.sample(trained, samples=1, steps=3, method="dpm++", frames=5, guidance=2.0, progress=False)
    assert more is not None and more.videos.shape[1] == 5
    out = convert(tmp_path / "flex", tmp_path / "flex.safetensors")
    state = read_checkpoint(out)
    again = trained.adapter.build()
    assert f"{len(state)} tensors taken" in trained.adapter.start(again, str(out))
    assert all(torch.equal(p, state[name]) for name, p in again.state_dict().items())


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    args = ["train", "--out", str(out), "--flex", "PD GSRD", "--model.sides", "1", "2", "--model.depth", "6",
            "--model.patch-size", "2", "--model.hidden-size", "16", "--model.num-heads", "2", "--data.kind", "shapes",
            "--frames", "2", "--size", "8", "--steps", "2", "--batch", "2"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["latte-fast", *args])
    main()
    monkeypatch.setattr("sys.argv", ["latte-fast", "train", "--out", str(out), "--resume", "--steps", "3"])
    main()
    assert latte_fast.load(out).step == 3
    monkeypatch.setattr(
        "sys.argv", ["latte-fast", "train", *args[1:-4], "--flex", "PD GSSD", "--out", str(tmp_path / "x")]
    )
    with pytest.raises(SystemExit, match="recover all tokens"):
        main()


def test_adapter() -> None:
    sizes = DataSizes(3, 8, 2)
    fitted = FlexLatteAdapter.fit(FLEX, sizes, ["a", "b"], None, None)
    assert (fitted.config.layout, fitted.config.sides, fitted.choices) == ("PD GSRD", (1, 2, 3), 2)
    assert type(fitted.build(images=1)) is FlexLatteIMG
    model = FlexLatte(**asdict(fitted.config))
    assert type(adapter_of(model)) is FlexLatteAdapter and adapter_of(model).step_keywords(4)[0] == {"side": 1}
    with pytest.raises(ValueError, match="layout must name 6 blocks"):
        FlexLatteAdapter.fit(replace(FLEX, layout="PDD"), sizes, [], None, None)


def test_images_beside_clips_train(tmp_path: Path) -> None:
    assert Trainer(tiny(tmp_path / "run", model=FLEX, images=2, steps=2)).run() == 2


def test_engine_takes_a_row_a_step() -> None:
    process = sampling_process(DiffusionConfig(), 5, learn_sigma=False)
    seen: list[Any] = []

    def model(x: Tensor, t: Tensor, **given: Any) -> Tensor:
        seen.append((int(t[0]), given["side"]))
        return torch.zeros_like(x)

    rows = [{"side": i} for i in range(5)]
    for method in ("ddim", "ddpm", "dpm++"):
        seen.clear()
        generate(process, model, [0], (1, 1, 2, 2), seed=0, method=method, step_keywords=rows)
        assert [side for _, side in seen] == list(range(5)) and [t for t, _ in seen] == sorted((t for t, _ in seen))[
            ::-1
        ]
    with pytest.raises(ValueError, match="step_keywords must hold one row for each of the 5 steps, got 4"):
        generate(process, model, [0], (1, 1, 2, 2), seed=0, step_keywords=rows[:4])
