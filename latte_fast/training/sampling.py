"""Files of samples from a source of clips, on any number of ranks: sample i is the same whoever draws it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latte_fast.data import write
from latte_fast.data.vae import VAE
from latte_fast.diffusion import METHODS, Diffusion, create_diffusion
from latte_fast.diffusion.gaussian import Model
from latte_fast.diffusion.generate import Chunk, chunks, generate, labels_of
from latte_fast.diffusion.windows import windowed
from latte_fast.files import atomic
from latte_fast.training.config import DiffusionConfig
from latte_fast.training.load import Trained
from latte_fast.training.parallel import Ranks

Conditions = dict[str, Tensor]
FORMATS = ("mp4", "gif", "png", "npz")


class Asked(NamedTuple):
    """What samples are conditioned on: the model's keywords, the same for nothing, and a name for each sample."""

    condition: Conditions
    null: Conditions
    names: list[str]


class Source(Protocol):
    """What clips are drawn from: a trained class-conditional model here, any other that has these."""

    model: Model
    shape: tuple[int, int, int, int]  # of a sample, (F, C, h, w)
    device: torch.device
    dtype: torch.dtype
    pixels: bool  # x_0 is in [-1, 1]

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
        for name, least in (("seed", 0), ("scale", 0), ("eta", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"sample: {name} must be at least {least}, got {getattr(self, name)}")
        if self.fps <= 0:
            raise ValueError(f"sample: fps must be positive, got {self.fps}")


class ClassSource:
    """A trained Latte, of classes or of none.

    Args:
        trained: the model and its configuration.
        vae: which decodes what it makes.
        wanted: classes by number or name, in turn over the samples; none draws them by the seed.
        dtype: of weights and activations.
    """

    def __init__(self, trained: Trained, vae: VAE, wanted: Sequence[str] = (), dtype: torch.dtype = torch.float32):
        config = trained.model.config
        self.trained, self.vae, self.dtype = trained, vae, dtype
        self.classes = config.num_classes if config.extras == 2 else 0
        self.wanted = [class_number(name, trained.classes, self.classes) for name in wanted]
        # a table without a row for the null class was trained without dropout
        self.guidable = bool(self.classes) and config.class_dropout_prob > 0
        if vae.channels != config.in_channels:
            raise ValueError(f"sample: vae must have the model's {config.in_channels} channels, got {vae.channels}")
        self.model: Model = trained.model.to(dtype)
        self.device = next(trained.model.parameters()).device
        self.shape = (config.num_frames, config.in_channels, config.input_size, config.input_size)
        self.pixels = vae.factor == 1

    def process(self, steps: int) -> Diffusion:
        return sampling_process(self.trained.config.diffusion, steps, self.trained.model.learn_sigma)

    def asked(self, numbers: Sequence[int], seed: int) -> Asked:
        if not self.classes:
            return Asked({}, {}, [str(number) for number in numbers])
        labels = labels_of(numbers, self.wanted, self.classes, seed)
        known = self.trained.classes
        names = [known[i] if i < len(known) else str(i) for i in labels.tolist()]
        null = {"y": torch.full_like(labels, self.classes)} if self.guidable else {}
        return Asked({"y": labels}, null, names)

    def decode(self, drawn: Tensor) -> Tensor:
        return self.vae.decode(drawn)


def class_number(name: str, known: Sequence[str], classes: int) -> int:
    """A class by its name or number."""
    if not classes:
        raise ValueError(f"sample: classes must be left out for a model without, got {name!r}")
    if name in known:
        return list(known).index(name)
    if name.isdigit() and int(name) < classes:
        return int(name)
    names = f" or one of {', '.join(known)}" if known else ""
    raise ValueError(f"sample: classes must be below {classes}{names}, got {name!r}")


def sampling_process(config: DiffusionConfig, steps: int, learn_sigma: bool) -> Diffusion:
    """The trained process in fewer steps."""
    if not 1 <= steps <= config.steps:
        raise ValueError(f"sample: steps must be in [1, {config.steps}], got {steps}")
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
    model, frames = source.model, request.frames or source.shape[0]
    model = windowed(model, source.shape[0], frames)
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
    ranks.from_first(lambda: make_room(out, [*every, "samples.json"]))
    mine = chunks(request.count, request.batch, ranks.rank, ranks.count, in_step)
    steps = sum(1 for _ in mine) * request.steps
    with tqdm(total=steps, desc="sample", unit="step", disable=None if ranks.first else True) as bar:
        for chunk in mine:
            videos, names = draw(source, request, chunk.numbers, bar.update)
            if chunk.wanted:
                write_chunk(out, chunk, videos[: chunk.wanted], names[: chunk.wanted], request)
    ranks.barrier()
    if ranks.first:
        names = source.asked(range(request.count), request.seed).names
        with atomic(out / "samples.json") as partial:
            partial.write_text(json.dumps({"request": request.__dict__, "names": names}, indent=1))


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


def make_room(out: Path, names: list[str]) -> None:
    """The folder, where none of these files may be yet."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"sample: out must be a folder, got the file {out}")
    there = [name for name in names if (out / name).exists()]
    if there:
        raise ValueError(f"sample: out must not hold these samples yet, got {out} with {there[0]}")
    out.mkdir(parents=True, exist_ok=True)
