"""Samples during training, from the averaged weights."""

from typing import TYPE_CHECKING

import torch

from latte_fast.data import write
from latte_fast.diffusion.generate import generate, labels_of
from latte_fast.training.sampling import sampling_process, to_pixels

if TYPE_CHECKING:
    from latte_fast.training.trainer import Trainer


@torch.no_grad()
def preview(trainer: "Trainer") -> None:
    """Writes samples/step-<n>.png; every rank takes part where the model is sharded, in the same samples."""
    config, task, asked = trainer.config, trainer.task, trainer.config.sample
    if not trainer.ranks.first and trainer.how != "fsdp":
        trainer.ranks.barrier()
        return
    vae = trainer.vae
    assert vae is not None
    classes, numbers = len(task.classes), list(range(asked.count))
    condition, null, names = {}, {}, []
    if classes:
        labels = labels_of(numbers, range(classes), classes, config.seed)
        condition, null = {"y": labels}, {"y": torch.full_like(labels, classes)}
        names = [task.classes[label] for label in labels.tolist()]
    trainer.model.eval()
    with trainer.ema.in_place_of(trainer.weights.own):
        drawn = generate(
            sampling_process(config.diffusion, asked.steps, config.model.learn_sigma),
            trainer.sample,
            numbers,
            (config.frames, *task.latent[1:]),
            seed=config.seed,
            method=asked.method,
            scale=asked.scale if trainer.dropout else 1.0,
            condition=condition,
            null=null,
            clip_denoised=vae.factor == 1,
            device=trainer.ranks.device,
        )
    trainer.model.train()
    if trainer.ranks.first:
        folder = trainer.out / "samples"
        folder.mkdir(exist_ok=True)
        clips = list(to_pixels(vae.decode(drawn)))
        write.write_sheet(folder / f"step-{trainer.step:07d}.png", clips, names)
    trainer.ranks.barrier()
