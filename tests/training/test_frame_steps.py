"""Training with a time step a frame: drawn by sample and frame, mixed by a share, resumed exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast.data.seeding import SampleKey
from latte_fast.runs.log import LOG, read_log
from latte_fast.training import DiffusionConfig, Trainer
from latte_fast.training.objectives.denoising import DenoisingItems
from tests.helpers.tiny_run import MODEL, losses, tiny, tiny_flex


def items_of(trainer: Trainer, **changes: Any) -> DenoisingItems:
    objective = trainer.objective
    config = replace(trainer.config, diffusion=replace(trainer.config.diffusion, **changes))
    return DenoisingItems(objective.dataset, objective.adapter, config, objective.latent, False, 0.0)


def steps_of(items: DenoisingItems, count: int = 200) -> torch.Tensor:
    return torch.stack([items[SampleKey(0, 3, number)]["t"] for number in range(count)])


def test_a_step_a_frame_is_drawn_by_sample_and_frame(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path / "run", frames=3))
    plain, none, half, every = (items_of(trainer, frame_steps=share) for share in (0.0, 1e-9, 0.5, 1.0))
    common, own = steps_of(plain), steps_of(every)
    assert common.shape == (200,) and own.shape == (200, 3)
    # the frames of a clip that share a step have the one that they had without
    assert torch.equal(steps_of(none), common[:, None].expand(-1, 3))
    mixed = steps_of(half)
    alike = (mixed == mixed[:, :1]).all(1)
    assert 70 < alike.sum() < 130
    assert torch.equal(mixed[alike], common[alike][:, None].expand(-1, 3)) and torch.equal(mixed[~alike], own[~alike])
    assert torch.equal(steps_of(every), own) and abs(own.float().mean() - 500) < 50
    assert abs(torch.corrcoef(own.T.double())[0, 1]) < 0.2
    early = steps_of(items_of(trainer, frame_steps=1.0, timesteps="lognormal", shift=-2.0, steps=100))
    assert early.max() < 100 and 12 < early.float().mean() < 17  # 14.5, of sigmoid(N(-2, 1))


def test_images_have_steps_of_their_own(tmp_path: Path) -> None:
    process = DiffusionConfig(frame_steps=1.0)
    trainer = Trainer(tiny(tmp_path / "run", images=2, steps=2, diffusion=process))
    batch = next(iter(trainer.batches()))
    assert batch["t"].shape == (4, 4)
    assert trainer.run() == 2


def test_frames_of_an_update_stay_in_its_interval(tmp_path: Path) -> None:
    """FlexDiT has one density an update, and so a range of time steps."""
    trainer = Trainer(tiny_flex(tmp_path / "run", frames=3, diffusion=DiffusionConfig(frame_steps=1.0)))
    items = trainer.objective.items()
    seen = set()
    for update in range(20):
        within = trainer.objective.densities.at(update).steps
        assert within is not None
        t = torch.stack([items[SampleKey(0, 0, 4 * update + i)]["t"] for i in range(4)])
        assert t.shape == (4, 3) and t.min() >= within.start and t.max() < within.stop
        seen.add(within)
    assert len(seen) > 1


def test_a_stopped_run_goes_on_exactly(tmp_path: Path) -> None:
    given: dict[str, Any] = {"frames": 3, "diffusion": DiffusionConfig(frame_steps=0.5), "steps": 8}
    Trainer(tiny(tmp_path / "whole", **given)).run()

    stopped = Trainer(tiny(tmp_path / "stopped", **given))
    update = stopped.update

    def limited(*args: Any, **kwargs: Any) -> Any:
        if stopped.step == 5:
            raise KeyboardInterrupt
        return update(*args, **kwargs)

    stopped.update = limited  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    Trainer(tiny(tmp_path / "stopped", **given), resume=True).run()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 8
    # and the steps of frames make a difference
    Trainer(tiny(tmp_path / "plain", **{**given, "diffusion": DiffusionConfig()})).run()
    assert losses(tmp_path / "plain") != losses(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"diffusion\.frame_steps must be 0\.5 as in"):
        Trainer(tiny(tmp_path / "stopped", **{**given, "diffusion": DiffusionConfig()}), resume=True)
    assert "vb" in read_log(tmp_path / "whole" / LOG)[0]


def test_wrong_shares_are_named() -> None:
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"diffusion\.frame_steps must be in \[0, 1\]"):
            tiny("run", diffusion=DiffusionConfig(frame_steps=share))
    with pytest.raises(ValueError, match=r"frame_steps must be 0 where a patch spans frames, which share a step"):
        tiny("run", model=replace(MODEL, patch_frames=2), diffusion=DiffusionConfig(frame_steps=0.5))
