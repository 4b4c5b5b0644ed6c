"""Samples during training, from the averaged weights."""

from typing import TYPE_CHECKING

import torch

from latte_fast.data import write
from latte_fast.diffusion.generate import generate, labels_of
from latte_fast.training.parallel import gather_anew
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
    numbers, choices = list(range(asked.count)), task.family.choices
    labels = labels_of(numbers, range(choices), choices, config.seed).tolist() if choices else numbers
    told = task.family.asked(labels, guidable=trainer.dropout > 0)
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
            condition=told.condition,
            null=told.null,
            clip_denoised=vae.factor == 1,
            device=trainer.ranks.device,
        )
    gather_anew(trainer.model)
    trainer.model.train()
    if trainer.ranks.first:
        folder = trainer.out / "samples"
        folder.mkdir(exist_ok=True)
        clips = list(to_pixels(vae.decode(drawn)))
        write.write_sheet(folder / f"step-{trainer.step:07d}.png", clips, told.names if choices else ())
    trainer.ranks.barrier()
