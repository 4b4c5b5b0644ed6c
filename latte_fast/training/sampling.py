"""Files of samples from a source of clips, on any number of ranks: sample i is the same whoever draws it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latte_fast.config import LatteT2VConfig
from latte_fast.data import write
from latte_fast.data.text import Texts
from latte_fast.data.vae import VAE
from latte_fast.diffusion import METHODS, Diffusion, create_diffusion
from latte_fast.diffusion.generate import Chunk, chunks, generate, labels_of
from latte_fast.diffusion.noise import SEEDS
from latte_fast.diffusion.windows import windowed
from latte_fast.files import atomic
from latte_fast.training.config import DiffusionConfig
from latte_fast.training.family import Asked, Conditions, Family
from latte_fast.training.load import Trained
from latte_fast.training.of_classes import OfClasses
from latte_fast.training.of_text import OfText
from latte_fast.training.parallel import Ranks

FORMATS = ("mp4", "gif", "png", "npz")
# beside the samples
NAMES = "samples.json"


class Source(Protocol):
    """What clips are drawn from: a trained model here, any other that has these."""

    shape: tuple[int, int, int, int]  # of a sample, (F, C, h, w)
    device: torch.device
    dtype: torch.dtype
    pixels: bool  # x_0 is in [-1, 1]

    def model(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor: ...

    def process(self, steps: int) -> Diffusion: ...

    def asked(self, numbers: Sequence[int], seed: int) -> Asked: ...

    def decode(self, drawn: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Request:
    """How many samples of what kind; see `latte-fast sample`."""

    count: int = 8
    batch: int = 4
    seed: int = 0
    steps: int = 50
    method: Literal["ddpm", "ddim", "dpm++"] = "ddim"
    scale: float = 4.0
    eta: float = 0.0
    frames: int | None = None
    format: Literal["mp4", "gif", "png", "npz"] = "mp4"
    fps: float = 8.0

    def __post_init__(self) -> None:
        for name in ("count", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"sample: {name} must be at least 1, got {getattr(self, name)}")
        for name, known in (("method", METHODS), ("format", FORMATS)):
            if getattr(self, name) not in known:
                raise ValueError(f"sample: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        rules = (
            ("seed", 0 <= self.seed < SEEDS, "in [0, 2^64)"),
            ("scale", 0 <= self.scale < math.inf, "at least 0, and finite"),
            ("eta", 0 <= self.eta <= 1, "in [0, 1]"),
            ("eta", self.method == "ddim" or not self.eta, f"left out for {self.method}, as it is ddim's"),
            ("frames", self.frames is None or self.frames >= 1, "at least 1"),
            ("fps", write.FPS[0] <= self.fps <= write.FPS[1], f"from {write.FPS[0]} to {write.FPS[1]}"),
        )
        for name, ok, rule in rules:
            if not ok:
                raise ValueError(f"sample: {name} must be {rule}, got {getattr(self, name)}")


class TrainedSource:
    """A trained model: of classes, of captions whose embeddings are there, or of nothing.

    Args:
        trained: the model and its configuration.
        vae: which decodes what it makes.
        wanted: classes or captions by number or name, in turn over the samples; none draws them by the seed.
        dtype: of weights and activations.
    """

    def __init__(self, trained: Trained, vae: VAE, wanted: Sequence[str] = (), dtype: torch.dtype = torch.float32):
        self.trained, self.vae, self.dtype = trained, vae, dtype
        self.family, channels = family_of(trained), trained.model.config.in_channels
        if vae.channels != channels:
            rule = f"the model's {channels} channels, got {vae.channels}; give --vae the folder that encoded the data"
            raise ValueError(f"sample: vae must have {rule}")
        self.wanted = [self.number(name) for name in wanted]
        self.device = next(trained.model.parameters()).device
        self.net = trained.model.to(dtype)
        config = trained.model.config
        if isinstance(config, LatteT2VConfig):
            # the side of the data: the position table may be another's that was started from
            frames, side = config.video_length, trained.config.size // vae.factor
            self.learn_sigma = config.channels_out > channels
            self.guidable = trained.config.model.class_dropout_prob > 0
        else:
            frames, side, self.learn_sigma = config.num_frames, config.input_size, config.learn_sigma
            # a table without a row for the null class was trained without dropout
            self.guidable = config.class_dropout_prob > 0
        self.shape = (frames, channels, side, side)
        self.pixels = vae.factor == 1

    def model(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self.family.call(self.net, x, t, **conditions)

    def process(self, steps: int) -> Diffusion:
        return sampling_process(self.trained.config.diffusion, steps, self.learn_sigma)

    def number(self, name: str) -> int:
        """A class or caption by its name or number."""
        family = self.family
        what, known = ("captions", family.texts.captions) if isinstance(family, OfText) and family.texts else (
            "classes", self.trained.classes)  # fmt: skip
        if not family.choices:
            raise ValueError(f"sample: {what} must be left out for a model without, got {name!r}")
        if name in known:
            return list(known).index(name)
        if name.isdecimal() and int(name) < family.choices:
            return int(name)
        names = f" or one of {', '.join(known[:20])}{', ...' * (len(known) > 20)}" if known else ""
        other = "; --pretrained takes any prompt" if what == "captions" else ""
        raise ValueError(f"sample: {what} must be below {family.choices}{names}, got {name!r}{other}")

    def asked(self, numbers: Sequence[int], seed: int) -> Asked:
        choices = self.family.choices
        labels = labels_of(numbers, self.wanted, choices, seed).tolist() if choices else list(numbers)
        condition, null, names = self.family.asked(labels, self.guidable)
        return Asked(self._in_dtype(condition), self._in_dtype(null), names)

    def _in_dtype(self, given: Conditions) -> Conditions:
        return {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in given.items()}

    def decode(self, drawn: Tensor) -> Tensor:
        return self.vae.decode(drawn)


def family_of(trained: Trained) -> Family:
    config = trained.model.config
    if isinstance(config, LatteT2VConfig):
        return OfText(config, Texts(trained.config.data.text))
    return OfClasses(config, trained.classes)


def sampling_process(config: DiffusionConfig, steps: int, learn_sigma: bool) -> Diffusion:
    """The trained process in fewer steps; alone, a step would be step 0, for which noise is a finished clip."""
    if not 2 <= steps <= config.steps:
        raise ValueError(f"sample: steps must be in [2, {config.steps}], got {steps}")
    return create_diffusion(
        str(steps),
        config.schedule,
        learn_sigma=learn_sigma,
        diffusion_steps=config.steps,
        prediction=config.prediction,
    )


def to_pixels(video: Tensor) -> Tensor:
    """(..., F, 3, H, W) in [-1, 1] as uint8 (..., F, H, W, 3), rounded as upstream rounds."""
    return (video.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu()


@torch.no_grad()
def draw(
    source: Source, request: Request, numbers: Sequence[int], tick: Callable[[], object] = lambda: None
) -> tuple[Tensor, list[str]]:
    """Samples `numbers` as uint8 (B, F, H, W, 3), and their names; `tick` is called at each step."""
    frames = request.frames or source.shape[0]
    model = windowed(source.model, source.shape[0], frames)
    asked = source.asked(numbers, request.seed)
    if request.scale != 1.0 and asked.condition and not asked.null:
        raise ValueError(f"sample: scale must be 1 for a model trained without dropped labels, got {request.scale}")

    def ticking(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        out = model(x, t, **kwargs)
        tick()
        return out

    drawn = generate(
        source.process(request.steps),
        ticking,
        numbers,
        (frames, *source.shape[1:]),
        seed=request.seed,
        method=request.method,
        scale=request.scale,
        condition=asked.condition,
        null=asked.null,
        eta=request.eta,
        clip_denoised=source.pixels,
        device=source.device,
        dtype=source.dtype,
    )
    return to_pixels(source.decode(drawn)), asked.names


def files_of(chunk: Chunk, request: Request) -> list[str]:
    """The names of a chunk's files: one a sample, or one contact sheet."""
    numbers = chunk.numbers[: chunk.wanted]
    if request.format == "png":
        return [f"{numbers[0]:06d}-{numbers[-1]:06d}.png"] if numbers else []
    return [f"{number:06d}.{request.format}" for number in numbers]


def sample_files(source: Source, request: Request, out: str | Path, ranks: Ranks, in_step: bool = False) -> None:
    """Draws and writes all samples of a request; every rank calls this.

    Args:
        source: of the clips.
        request: how many, of what.
        out: folder of the files, where none of their names may exist.
        ranks: that share the work.
        in_step: whether the model is sharded, so that ranks have to call it together.
    """
    out = Path(out)
    every = [name for chunk in chunks(request.count, request.batch) for name in files_of(chunk, request)]
    ranks.from_first(lambda: make_room(out, [*every, NAMES]))
    mine = chunks(request.count, request.batch, ranks.rank, ranks.count, in_step)
    steps = sum(1 for _ in mine) * request.steps
    with tqdm(total=steps, desc="sample", unit="step", disable=None if ranks.first else True) as bar:
        for chunk in mine:
            videos, names = draw(source, request, chunk.numbers, bar.update)
            if chunk.wanted:
                write_chunk(out, chunk, videos[: chunk.wanted], names[: chunk.wanted], request)
    ranks.barrier()
    if ranks.first:
        write_names(out, request.__dict__, source.asked(range(request.count), request.seed).names)


def write_chunk(out: Path, chunk: Chunk, videos: Tensor, names: list[str], request: Request) -> None:
    files = files_of(chunk, request)
    if request.format == "png":
        write.write_sheet(out / files[0], list(videos), names)
        return
    for file, video, name, number in zip(files, videos, names, chunk.numbers, strict=False):
        if request.format == "npz":
            with atomic(out / file) as partial, partial.open("wb") as handle:
                np.savez_compressed(handle, video=video.numpy(), name=name, number=number, seed=request.seed)
        elif request.format == "gif":
            write.write_gif(out / file, video, request.fps)
        else:
            write.write_mp4(out / file, video, request.fps)


def write_names(out: Path, request: dict[str, Any], names: list[str]) -> None:
    """What was asked for, and what each sample shows."""
    with atomic(out / NAMES) as partial:
        partial.write_text(json.dumps({"request": request, "names": names}, indent=1) + "\n")


def check_room(out: Path, names: list[str]) -> None:
    """A folder or nothing yet, where none of these files may be."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"sample: out must be a folder, got the file {out}")
    there = [name for name in names if (out / name).exists()]
    if there:
        raise ValueError(f"sample: out must not hold these samples yet, got {out} with {there[0]}")


def make_room(out: Path, names: list[str]) -> None:
    """The folder, checked and made."""
    check_room(out, names)
    out.mkdir(parents=True, exist_ok=True)
