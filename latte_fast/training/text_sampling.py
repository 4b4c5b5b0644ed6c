"""Text to video from a local pipeline folder: diffusers' LattePipeline, made fast, to files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latte_fast.diffusion.generate import Chunk
from latte_fast.files import atomic
from latte_fast.models.latte_t2v import LatteT2V
from latte_fast.models.patch import patch
from latte_fast.models.pretrained import CLASSES
from latte_fast.training.parallel import Ranks
from latte_fast.training.sampling import Request, make_room, write_chunk

# the ones upstream offers, by diffusers' class names without their ending
SCHEDULERS = ("DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep",
              "PNDM", "HeunDiscrete", "DEISMultistep", "KDPM2AncestralDiscrete")  # fmt: skip
TOKENS = 120
# of a frame VAE and of the temporal decoder, as upstream decodes
DECODED_AT_ONCE = 14


@dataclass(frozen=True)
class TextRequest:
    """What to make of which prompts; see `latte-fast sample`."""

    prompts: tuple[str, ...]
    negative: str = ""
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    over_time: bool = True
    temporal_decoder: bool = False
    decoded_at_once: int = DECODED_AT_ONCE

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("sample: prompt must not be empty")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"sample: scheduler must be one of {', '.join(SCHEDULERS)}, got {self.scheduler!r}")
        for name in ("height", "width", "frames", "decoded_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"sample: {name} must be at least 1, got {value}")


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """A prompt a line; empty lines are skipped."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"sample: prompts must be a file with a prompt a line, got {path}")
    prompts = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if not prompts:
        raise ValueError(f"sample: prompts must hold a prompt, got {path} without any")
    return prompts


def check_folder(folder: str | Path, request: TextRequest, model: LatteT2V | None = None) -> None:
    """What can be known of a pipeline's folder before a weight is read; `model` stands in for its transformer."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"sample: pretrained must be a local folder, got {folder}")
    needed = ["model_index.json", "tokenizer", "text_encoder", "vae", "scheduler"]
    needed += [] if model else ["transformer/config.json"]
    needed += ["vae_temporal_decoder"] if request.temporal_decoder else []
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"sample: pretrained must hold {', '.join(needed)}; {missing[0]} is missing, found {found}")
    if model:
        length = model.config.video_length
    else:
        config: dict[str, Any] = json.loads((folder / "transformer" / "config.json").read_text())
        if config.get("_class_name") not in CLASSES:
            raise ValueError(f"sample: transformer must be a {' or '.join(CLASSES)}, got {config.get('_class_name')!r}")
        length = config.get("video_length", 16)
    frames = request.frames
    if frames is not None and frames not in (1, length):
        raise ValueError(f"sample: frames must be {length} as the model's table, or 1, got {frames}")


def open_pipeline(
    folder: str | Path, request: TextRequest, device: torch.device, dtype: torch.dtype, model: LatteT2V | None = None
) -> Any:
    """The folder's LattePipeline with its transformer made fast, or `model` in its place, on a device."""
    try:
        import diffusers
    except ImportError:
        raise ValueError("sample: text to video needs diffusers: pip install 'latte_fast[t2v]'") from None
    given = {"transformer": None} if model else {}
    pipe = diffusers.LattePipeline.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, **given)
    if request.temporal_decoder:
        kind = diffusers.AutoencoderKLTemporalDecoder
        pipe.vae = kind.from_pretrained(str(folder), subfolder="vae_temporal_decoder", torch_dtype=dtype)
    if request.scheduler is not None:
        config = dict(pipe.scheduler.config)
        if request.scheduler != "DDPM":
            # the pipeline gives the variance's channels to any scheduler whose config says it is learned
            config.pop("variance_type", None)
        pipe.scheduler = getattr(diffusers, f"{request.scheduler}Scheduler").from_config(config)
    if model:
        pipe.register_modules(transformer=model.to(dtype))
    else:
        report = patch(pipe)
        if not report.swapped:
            raise ValueError(f"sample: the transformer can't be made fast: {report}")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@torch.no_grad()
def draw_text(pipe: Any, request: TextRequest, how: Request, number: int) -> Tensor:
    """Sample `number` as uint8 (F, H, W, 3): its prompt, the prompts in turn; its noise by the seed and the number."""
    noise = torch.Generator("cpu").manual_seed(how.seed * 1_000_003 + number)
    frames = request.frames or pipe.transformer.config.video_length
    # one prompt a call: in a batch the pipeline keeps the padding's embeddings, so that a video would have neighbours
    video = pipe(
        request.prompts[number % len(request.prompts)],
        negative_prompt=request.negative,
        num_inference_steps=how.steps,
        guidance_scale=how.scale,
        eta=how.eta,
        video_length=frames,
        height=request.height,
        width=request.width,
        generator=noise,
        enable_temporal_attentions=request.over_time and frames > 1,
        decode_chunk_size=request.decoded_at_once,
        clean_caption=False,
        output_type="pt",
    ).frames[0]  # (F, 3, H, W) in [0, 1]
    return (video.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu()


def sample_text(
    folder: str | Path,
    request: TextRequest,
    how: Request,
    out: str | Path,
    ranks: Ranks,
    dtype: torch.dtype,
    model: LatteT2V | None = None,
) -> None:
    """Draws and writes how.count samples of the prompts in turn; every rank calls this and takes its share.

    Args:
        folder: of the pipeline.
        request: what to show.
        how: how to sample and to write.
        out: folder of the files, where none of their names may exist.
        ranks: that share the work.
        dtype: of weights and activations.
        model: in the place of the folder's transformer.
    """
    check_folder(folder, request, model)
    out = Path(out)
    numbers = range(how.count)
    ranks.from_first(lambda: make_room(out, [*(files_name(n, how) for n in numbers), "samples.json"]))
    pipe = open_pipeline(folder, request, ranks.device, dtype, model)
    mine = numbers[ranks.rank :: ranks.count]
    for number in tqdm(mine, desc="sample", unit="clip", disable=None if ranks.first else True):
        video = draw_text(pipe, request, how, number)
        prompt = request.prompts[number % len(request.prompts)]
        write_chunk(out, Chunk([number], 1), video[None], [prompt], how)
    ranks.barrier()
    if ranks.first:
        said = [request.prompts[n % len(request.prompts)] for n in numbers]
        with atomic(out / "samples.json") as partial:
            partial.write_text(json.dumps({"request": how.__dict__ | request.__dict__, "names": said}, indent=1))


def files_name(number: int, how: Request) -> str:
    return f"{number:06d}-{number:06d}.png" if how.format == "png" else f"{number:06d}.{how.format}"
