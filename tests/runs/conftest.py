"""A run's folder, as training leaves it."""

import json
from pathlib import Path

import numpy as np
import pytest

from latte_fast.media.write import write_sheet
from latte_fast.runs.config import CONFIG, TrainConfig
from latte_fast.runs.log import LOG
from latte_fast.runs.yaml import write_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of 40 steps: its settings, its log, and previews of twelve steps."""
    run = tmp_path / "runs" / "a & <b>"
    run.mkdir(parents=True)
    write_config(run / CONFIG, TrainConfig(out=str(run), size=16, frames=4, steps=40))
    lines = [
        {"step": step, "loss": 1 / step, "lr": 1e-3, "clips_per_s": 5.0 + step, "data_wait": 0.1, "peak_bytes": 2e9}
        | ({"eval_fvd": 900.0 - step} if step % 20 == 0 else {})
        for step in range(10, 41, 10)
    ]
    (run / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw = np.random.default_rng(0)
    (run / "samples").mkdir()
    for step in range(1, 13):
        clips = list(draw.integers(0, 256, (2, 4, 16, 16, 3), np.uint8))
        write_sheet(run / "samples" / f"step-{step:07d}.png", clips, ("up", "down") if step % 2 else ())
    return run
