"""The diffusion objective: a model learns to denoise clips or their latents."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from latte_fast.codecs.vae import VAE
from latte_fast.cuda_graphs.step import StepReplay
from latte_fast.data import open_dataset
from latte_fast.data.item import Item
from latte_fast.data.seeding import SampleKey
from latte_fast.diffusion import create_diffusion, sample_timesteps
from latte_fast.diffusion.noise import Use, generator, normal
from latte_fast.distributed.ranks import Ranks
from latte_fast.media import write
from latte_fast.models.adapter import Adapter, DataSizes
from latte_fast.models.config import require
from latte_fast.models.families import family_for
from latte_fast.modules.compiling import compile_blocks
from latte_fast.modules.sequence import ParallelConfig, alone
from latte_fast.quantization.fp8_training import convert_to_fp8
from latte_fast.runs.codec import open_codec
from latte_fast.runs.config import TrainConfig
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import ModelSource
from latte_fast.training.learner import Learner
from latte_fast.training.loader import Batch
from latte_fast.training.objectives.densities import Densities
from latte_fast.training.objectives.objective import OneLearner


class DenoisingItem(Item, total=False):
    """An item of the data with all random draws for its sample; the model's family adds its conditions."""

    noise: Tensor  # (F + n, C, h, w)
    t: Tensor  # () int64, the time step, or (F + n,) where frames have their own
    drop: Tensor  # (1 + n,) bool, which labels are dropped
    eps: Tensor  # like noise, for a draw from the VAE's posterior
    text: Tensor  # (1 + n, T, C)
    text_mask: Tensor  # (1 + n, T) bool


class DenoisingItems(Dataset):
    """Clips with noise, time step and dropped labels, drawn by (seed, sample number) in the process that reads them.

    Args:
        dataset: data set whose items are read by key.
        adapter: adapter of the model's family.
        config: configuration of the run.
        latent: shape of the noised tensor, (F + n, C, h, w).
        encoded: whether latents are drawn from the VAE's posterior.
        dropout: probability that a label is dropped.
    """

    def __init__(
        self,
        dataset: Any,
        adapter: Adapter,
        config: TrainConfig,
        latent: tuple[int, ...],
        encoded: bool,
        dropout: float,
    ):
        self.dataset, self.adapter, self.config = dataset, adapter, config
        self.latent, self.encoded, self.dropout = latent, encoded, dropout
        self.densities = Densities(adapter, config.diffusion, config.seed)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        seed, process = self.config.seed, self.config.diffusion
        item = DenoisingItem(**self.dataset[key])
        item["noise"] = normal(seed, key.number, self.latent, Use.NOISE)
        source = generator(seed, key.number, Use.TIME)
        torch_source = torch.Generator().manual_seed(int(source.integers(2**63)))
        within = self.densities.at(key.number // self.config.batch).steps

        def steps(count: int, drawn_by: torch.Generator) -> Tensor:
            shift = process.shift
            return sample_timesteps(
                process.timesteps, count, process.steps, generator=drawn_by, mean=shift, within=within
            )

        item["t"] = steps(1, torch_source)[0]
        if process.frame_steps:
            own, frames = generator(seed, key.number, Use.FRAME_TIME), self.latent[0]
            item["t"] = item["t"].expand(frames)
            if own.random() < process.frame_steps:
                item["t"] = steps(frames, torch.Generator().manual_seed(int(own.integers(2**63))))
        if self.dropout:
            item["drop"] = torch.from_numpy(source.random(1 + self.config.images) < self.dropout)
        if self.encoded:
            item["eps"] = normal(seed, key.number, self.latent, Use.LATENT)
        return {**item, **self.adapter.read(item)}


class Denoising(OneLearner):
    """Trains a model to denoise; `Objective` explains the methods.

    Args:
        config: configuration of the run.
        ranks: processes of the run.
        parallel: none, ddp or fsdp.
        say: function that prints a note.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, parallel: str, say: Any):
        self.config, self.ranks = config, ranks
        self.vae = open_run_vae(config, ranks.device)
        self.dataset = open_dataset(config.data, config.frames, config.size, config.images)
        self.adapter, self.latent, self.encoded = fit_model(config, self.dataset, self.vae)
        self.shrinks = self.vae is not None and self.vae.factor > 1  # a codec without a posterior has means alone
        self.dropout = config.model.class_dropout_prob if self.adapter.choices else 0.0
        self.length = len(self.dataset)
        self.densities = Densities(self.adapter, config.diffusion, config.seed)
        self.columns: tuple[str, ...] = ("loss", "mse", "vb") if config.model.learn_sigma else ("loss",)
        self.diffusion = create_diffusion(
            "",
            config.diffusion.schedule,
            learn_sigma=config.model.learn_sigma,
            diffusion_steps=config.diffusion.steps,
            prediction=config.diffusion.prediction,
            min_snr=config.diffusion.min_snr,
        )
        model = new_model(config, self.adapter, say).to(ranks.device)
        if config.sequence > 1:
            share_clips(model, config.sequence, self.latent, config.images)
        if config.fp8:
            convert_to_fp8(model)
        if config.compile:
            compile_blocks(model)
        self.learner = Learner(model, config.optim, parallel, ranks, config.precision)
        self.learners: Mapping[str, Learner] = {"model": self.learner}
        # a side of the sparse grid has a graph of its own
        sides = len(config.model.sides) if config.model.layout else 1
        self.replay = StepReplay(model, max(2, sides)) if config.graphs else None
        if config.sample.every and config.sample.plan:
            source, request = self.previewed(config.sample.count)
            source.plan_for(request)

    def about(self) -> str:
        count = sum(p.numel() for p in self.learner.weights.own.values())
        model = type(self.learner.model).__name__.removeprefix("FSDP")
        choices = f"{self.adapter.choices:,} {self.adapter.labels}" if self.adapter.choices else "no classes"
        return f"{model} of {count:,} parameters, {self.length:,} clips with {choices}"

    def items(self) -> Dataset:
        return DenoisingItems(self.dataset, self.adapter, self.config, self.latent, self.encoded, self.dropout)

    def losses(self, learner: str, batch: Batch, step: int) -> dict[str, Tensor]:
        x = batch["latent"] if "latent" in batch else batch["video"]
        if self.encoded or ("video" in batch and self.shrinks):
            assert self.vae is not None
            mean, std = self.vae.encode(x)
            x = mean + std * batch["eps"] if self.encoded else mean
        conditions = self.adapter.conditions(batch, self.config.images) | self.densities.at(step).keywords
        return self.diffusion.training_losses(self.forward, x, batch["t"], conditions, batch["noise"])

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        return self._run(self.replay or self.learner.call, x, t, **kwargs)

    def sample(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Calls the model without its DDP wrapper, whose ranks would wait for each other."""
        return self._run(self.learner.model, x, t, **kwargs)

    def _run(self, model: Any, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        with self.learner.autocast(x.device):
            x = x.to(torch.bfloat16) if self.learner.weights.master else x
            return self.adapter.call(model, x, t, **kwargs).float()

    def meta(self) -> dict[str, Any]:
        adapter = self.adapter
        return {"family": adapter.name, "model": asdict(adapter.config), "classes": adapter.classes}

    def previewed(self, count: int) -> tuple[ModelSource, Request]:
        """Returns what samples in training are drawn from, and the request for so many."""
        config, wanted = self.config, self.config.sample
        assert self.vae is not None
        shape = (self.latent[0] - config.images, *self.latent[1:])
        guidable = self.dropout > 0
        source = ModelSource(
            self.sample,
            self.adapter,
            config.diffusion,
            self.vae,
            shape,
            guidable,
            self.ranks.device,
            wanted=range(self.adapter.choices),
            in_training=True,
        )
        source.network = self.learner.model
        request = Request(
            count=count,
            seed=config.seed,
            steps=wanted.steps,
            method=wanted.method,
            scale=wanted.scale if guidable else 1.0,
            plan=wanted.plan,
        )
        return source, request

    @torch.no_grad()
    def preview(self, step: int, folder: Path) -> None:
        """Writes folder/step-<n>.png from the EMA weights; ranks of a sharded model draw the same samples."""
        drawn = self._drawn(range(self.config.sample.count))
        if drawn is not None and self.ranks.first:
            clips, names = drawn
            folder.mkdir(exist_ok=True)
            labelled = names if self.adapter.choices else ()
            write.write_sheet(folder / f"step-{step:07d}.png", list(clips), labelled)
        self.ranks.barrier()

    @torch.no_grad()
    def draw(self, numbers: range) -> Tensor | None:
        """Draws samples of these numbers from the EMA weights, uint8 (B, F, H, W, 3), on the first rank."""
        drawn = self._drawn(numbers)
        self.ranks.barrier()
        return drawn[0] if drawn is not None and self.ranks.first else None

    def _drawn(self, numbers: range) -> tuple[Tensor, list[str]] | None:
        """Draws samples on the first rank, and on all where the model is sharded."""
        if not (self.ranks.first or self.learner.sharded):
            return None
        source, request = self.previewed(numbers.stop)
        # one rank draws alone
        with alone(self.learner.model), self.learner.averaged():
            return source.draw(request, numbers)


def share_clips(model: Any, degree: int, latent: tuple[int, ...], images: int) -> None:
    """Lets neighbouring ranks share each clip's tokens, where it has enough of them."""
    model.enable_parallelism(ParallelConfig(sequence=degree))
    patch = model.config.patch_size
    frames = (latent[0] - images) // getattr(model.config, "patch_frames", 1)
    model.parallel.shards(frames, (latent[2] // patch) * (latent[3] // patch))


def open_run_vae(config: TrainConfig, device: torch.device) -> VAE | None:
    """Opens the VAE that encodes clips and decodes previews; returns None for latents without previews."""
    if config.data.kind == "latents" and not config.sample.every:
        return None
    return open_codec(config.vae, device, torch.float32 if config.precision == "fp32" else torch.bfloat16)


def fit_model(config: TrainConfig, dataset: Any, vae: VAE | None) -> tuple[Adapter, tuple[int, ...], bool]:
    """Returns the adapter for the data, the noised tensor's shape, and whether latents are drawn from a posterior.

    Latents need a VAE only for previews.
    """
    item = dataset[(0, 0)]
    clip = item["latent" if "latent" in item else "video"]
    frames, channels, height, width = clip.shape
    merged = dataset.frame_factor if "latent" in item else 1 if vae is None else vae.frame_factor
    require(merged == 1 or not config.images, "images", f"0 with a codec that merges {merged} frames", config.images)
    require(config.frames % merged == 0, "frames", f"a multiple of the codec's {merged}", config.frames)
    given = (frames - config.images) * (merged if "latent" in item else 1)
    require(given == config.frames, "frames", f"the {given} of an item of the data", config.frames)
    want = config.frames // merged + config.images
    require(height == width, "data", "of square clips", (height, width))
    encoded = False
    if "video" in item:
        assert vae is not None
        require(height % vae.factor == 0, "size", f"a multiple of the VAE's {vae.factor}", height)
        channels, height = vae.channels, height // vae.factor
        encoded = vae.random
    elif vae is not None:
        require(vae.channels == channels, "vae", f"of the latents' {channels} channels to show samples", config.vae)
    captions = dataset.texts
    classes = list(dataset.classes) if "label" in item and captions is None else []
    sizes = DataSizes(channels, height, config.frames // merged)
    family = family_for(captions is not None, config.model)
    adapter = family.fit(config.model, sizes, classes, captions, config.pretrained)
    return adapter, (want, channels, height, height), encoded


def new_model(config: TrainConfig, adapter: Adapter, say: Any) -> nn.Module:
    """Builds a model by the run's seed, with the weights of `pretrained` if the run starts from them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = adapter.build(config.images, config.model.recompute)
    model.replays_few_clips = False  # type: ignore[assignment]  # previews leave training its memory
    if config.pretrained is not None:
        say(adapter.start(model, config.pretrained))
    return model
