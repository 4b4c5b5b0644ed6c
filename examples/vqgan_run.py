"""What vqgan_shapes.py and vqgan_film.py share: the settings of a small 3D-VQGAN, and training that goes on."""

import json
from pathlib import Path

from latte_fast.data import DataConfig
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.runs.config import CONFIG, VQGANTraining
from latte_fast.training import OptimConfig, SampleConfig, TrainConfig, Trainer


def settings(
    out: Path, model: VQGANConfig, data: DataConfig, frames: int, size: int, steps: int, batch: int, saves: int
) -> TrainConfig:
    """A 3D-VQGAN without discriminators, which would trade decibels for sharpness; dead codes start again.

    Args:
        out: folder of the run.
        model: sizes of the model.
        data: clips to train on.
        frames: number of frames of a clip.
        size: side of a frame.
        steps: number of updates.
        batch: clips of an update.
        saves: number of checkpoints on the way, of which the last is kept.
    """
    optim = OptimConfig(
        lr=2e-3, betas=(0.5, 0.9), rate="cosine", warmup=min(50, steps), clip=1.0, ema=0.99, ema_warmup=True
    )
    return TrainConfig(
        out=str(out),
        objective="vqgan",
        vqgan=VQGANTraining(model=model, restart=1.0, start=steps),
        data=data,
        optim=optim,
        sample=SampleConfig(every=max(1, steps // 4), count=4),
        frames=frames,
        size=size,
        steps=steps,
        batch=batch,
        save_every=max(1, steps // saves),
        keep=1,
    )


def train(config: TrainConfig, name: str) -> None:
    """Trains to the last step, from the beginning or from where it was stopped; ends the example where it stops."""
    if Trainer(config, resume=(Path(config.out) / CONFIG).is_file()).run() < config.steps:
        raise SystemExit(f"{name}: stopped before the last step; the same command goes on")


def keep(out: Path, found: dict[str, float]) -> None:
    (out / "judged.json").write_text(json.dumps(found, indent=1) + "\n")
