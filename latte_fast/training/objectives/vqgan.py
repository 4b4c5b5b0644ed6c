"""The objective of a 3D-VQGAN: clips to tokens and back, judged by pixels, features and discriminators."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from latte_fast.data import open_dataset
from latte_fast.data.seeding import SampleKey
from latte_fast.diffusion.noise import Use, generator
from latte_fast.distributed.ranks import Ranks
from latte_fast.media import write
from latte_fast.media.pixels import to_pixels
from latte_fast.models.checkpoint import load_state
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.models.tats.files import build, read_vqgan
from latte_fast.models.tats.losses import (
    Discriminators,
    discriminator_gan,
    feature_matching,
    frames_of,
    generator_gan,
    per_clip,
)
from latte_fast.models.tats.norm import at_least_fp32
from latte_fast.models.tats.vqgan import VQGAN
from latte_fast.runs.config import TrainConfig
from latte_fast.training.learner import Learner
from latte_fast.training.loader import Batch


class ClipItems(Dataset):
    """Clips with the number of the frame that the discriminator of pictures sees, drawn by (seed, sample number)."""

    def __init__(self, dataset: Any, config: TrainConfig):
        self.dataset, self.config = dataset, config

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        frame = generator(self.config.seed, key.number, Use.FRAME).integers(self.config.frames)
        return {"video": self.dataset[key]["video"], "frame": torch.tensor(int(frame))}


class GeneratorLearner(Learner):
    """The 3D-VQGAN, whose codes move after each update towards the latents of its whole batch."""

    def update(self, step: int, lr: float, wants_norm: bool) -> Tensor | None:
        norm = super().update(step, lr, wants_norm)
        self.model.codebook.update()  # type: ignore[operator]
        return norm


class VQGANObjective:
    """Trains a 3D-VQGAN against two discriminators; `Objective` explains the methods.

    Args:
        config: configuration of the run.
        ranks: processes of the run.
        parallel: none or ddp.
        say: function that prints a note.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, parallel: str, say: Any):
        self.config, self.ranks, self.options = config, ranks, config.vqgan
        self.dataset = open_dataset(config.data, config.frames, config.size)
        self.length = len(self.dataset)
        model = new_vqgan(config, say)
        self.model = model.to(ranks.device)
        self.model.codebook.waits, self.model.codebook.source = True, self._source
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1)
            sizes = (self.options.width, self.options.layers, self.options.model.channels)
            judges = Discriminators(*sizes).to(ranks.device)
        self.step = 0
        self.generator = GeneratorLearner(self.model, config.optim, parallel, ranks, config.precision)
        # nobody asks for an average of the discriminators
        unaveraged = replace(config.optim, ema=0.0)
        self.discriminators = Learner(judges, unaveraged, parallel, ranks, config.precision)
        self.learners: Mapping[str, Learner] = {"generator": self.generator, "discriminators": self.discriminators}
        self.weights_of = (self.options.image_gan, self.options.video_gan)
        self.distance = open_distance(self.options.perceptual, ranks.device)
        perceptual = ("perceptual",) if self.distance is not None else ()
        self.columns = ("loss", "l1", "commitment", *perceptual, "gan", "matching", "discriminators", "psnr")
        ranks.closers.append(lambda: self.__dict__.pop("model", None))

    def about(self) -> str:
        counts = [sum(p.numel() for p in learner.weights.own.values()) for learner in self.learners.values()]
        codes = f"{self.options.model.n_codes:,} codes"
        return f"VQGAN of {counts[0]:,} parameters and {codes}, judged by {counts[1]:,} more, {self.length:,} clips"

    def _source(self) -> torch.Generator:
        """Returns the generator of this step's draws from the latents, the same on every rank."""
        seed = int(generator(self.config.seed, self.step, Use.CODES).integers(2**63))
        return torch.Generator().manual_seed(seed)

    def items(self) -> Dataset:
        return ClipItems(self.dataset, self.config)

    def trains(self, learner: str, step: int) -> bool:
        return learner == "generator" or (step >= self.options.start and any(self.weights_of))

    def losses(self, learner: str, batch: Batch, step: int) -> dict[str, Tensor]:
        self.step = step
        return self._of_generator(batch, step) if learner == "generator" else self._of_discriminators(batch)

    def _of_generator(self, batch: Batch, step: int) -> dict[str, Tensor]:
        x = batch["video"].movedim(1, 2)  # (B, 3, T, H, W)
        with self.generator.autocast(x.device):
            made, quantised = self.generator.call(x)
        x, made = 0.5 * x, 0.5 * at_least_fp32(made)
        terms = {"l1": self.options.l1 * per_clip((made - x).abs()), "commitment": quantised.commitment}
        pictures = frames_of(made, batch["frame"]), frames_of(x, batch["frame"])
        if self.distance is not None:
            terms["perceptual"] = self.options.perceptual_weight * per_clip(self.distance(*pictures)[:, None])
        if self.trains("discriminators", step):
            with frozen(self.discriminators.model), self.discriminators.autocast(x.device):
                features = self.discriminators.model((pictures[0], made), (pictures[1], x))
            terms["gan"] = generator_gan(features, self.weights_of)
            terms["matching"] = self.options.matching * feature_matching(features, self.weights_of)
            # the discriminators learn from what this forward decoded
            batch["made"] = made.detach()
        error = per_clip((made.detach() - x).square())
        return {"loss": torch.stack(list(terms.values())).sum(0), **terms, "psnr": -10 * error.clamp(min=1e-10).log10()}

    def _of_discriminators(self, batch: Batch) -> dict[str, Tensor]:
        x, made = 0.5 * batch["video"].movedim(1, 2), batch["made"]
        pictures = frames_of(made, batch["frame"]), frames_of(x, batch["frame"])
        with self.discriminators.autocast(x.device):
            features = self.discriminators.call((pictures[0], made), (pictures[1], x))
        parts = [
            weight * discriminator_gan(fake[-1], true[-1], self.options.gan)
            for weight, (fake, true) in zip(self.weights_of, features, strict=True)
        ]
        total = torch.stack(parts).sum(0)
        return {"loss": total, "discriminators": total}

    def gauges(self) -> dict[str, float]:
        book = self.model.codebook
        return {"perplexity": book.perplexity.item(), "usage": book.usage.item()}

    def state(self) -> dict[str, Any]:
        return {
            name: learner.state() | {"buffers": dict(learner.model.named_buffers())}
            for name, learner in self.learners.items()
        }

    def loaded(self) -> None:
        self.model.codebook.forget()
        for learner in self.learners.values():
            learner.loaded()

    def weights(self) -> Mapping[str, Mapping[str, Tensor]]:
        buffers = dict(self.model.named_buffers())
        learner = self.generator
        return {"model": learner.weights.by_name | buffers, "ema": learner.ema.average | buffers}

    def meta(self) -> dict[str, Any]:
        return {"family": VQGANConfig.family, "model": asdict(self.model.config), "classes": []}

    @torch.no_grad()
    def preview(self, step: int, folder: Path) -> None:
        """Writes folder/step-<n>.png: clips of the data and, below each, what is decoded of its tokens."""
        if self.ranks.first:
            count = min(self.config.sample.count, self.length)
            clips = torch.stack([self.dataset[(0, i)]["video"] for i in range(count)])
            folder.mkdir(exist_ok=True)
            rows = torch.stack([to_pixels(clips), self.decoded(clips)], 1).flatten(0, 1)
            rows = rows.expand(*rows.shape[:-1], 3)  # sounds are grey
            write.write_sheet(folder / f"step-{step:07d}.png", list(rows), ["clip", "decoded"] * count)
        self.ranks.barrier()

    @torch.no_grad()
    def decoded(self, clips: Tensor) -> Tensor:
        """Returns what the EMA weights decode of the tokens of clips (B, F, 3, H, W), uint8 (B, F, H, W, 3)."""
        clips = clips.to(self.ranks.device)
        with self.generator.averaged(), self.generator.autocast(clips.device):
            made = [self.model(clip.movedim(0, 1)[None])[0] for clip in clips]
        return to_pixels(torch.cat(made).movedim(1, 2))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Lets gradients through the model, and gives its own weights none."""
    model.requires_grad_(False)
    yield
    model.requires_grad_(True)


def new_vqgan(config: TrainConfig, say: Any) -> VQGAN:
    """Builds a 3D-VQGAN by the run's seed, with the weights of `pretrained` if the run starts from them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(config.vqgan.model, config.vqgan.restart)
    if config.pretrained is not None:
        found = read_vqgan(config.pretrained)
        load_state(model, found.state, config.pretrained)
        say(f"{config.pretrained}: {len(found.state)} tensors taken")
    return model


def open_distance(path: str | None, device: torch.device) -> Any:
    """Opens a TorchScript network that compares pictures; None where there is none."""
    if path is None:
        return None
    try:
        network = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"train: vqgan.perceptual must be a TorchScript file, got {path}: {reason}") from None
    for p in network.parameters():
        p.requires_grad = False
    return network
