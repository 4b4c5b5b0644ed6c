"""Text to video from a local pipeline folder: diffusers' LattePipeline, made fast, to files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from latte_fast.diffusion.generate import Chunk
from latte_fast.diffusion.schedule import beta_schedule
from latte_fast.models.patch import patch
from latte_fast.training.config import DiffusionConfig
from latte_fast.training.load import Trained
from latte_fast.training.parallel import Ranks
from latte_fast.training.sampling import NAMES, Request, check_room, files_of, make_room, write_chunk, write_names
from latte_fast.training.text_folder import check_folder

# the ones upstream offers, by diffusers' class names without their ending
SCHEDULERS = ("DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep",
              "PNDM", "HeunDiscrete", "DEISMultistep", "KDPM2AncestralDiscrete")  # fmt: skip
# how diffusers calls what a run's model predicts
PREDICTIONS = {"epsilon": "epsilon", "start_x": "sample", "v": "v_prediction"}
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
    """A prompt a line of UTF-8; empty lines are skipped."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"sample: prompts must be a file with a prompt a line, got {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise ValueError(f"sample: prompts must be a file in UTF-8, got {path}: {error}") from error
    # at newlines alone: a prompt may hold other separators
    prompts = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not prompts:
        raise ValueError(f"sample: prompts must hold a prompt, got {path} without any")
    return prompts


def open_pipeline(
    folder: str | Path, request: TextRequest, device: torch.device, dtype: torch.dtype, trained: Trained | None = None
) -> Any:
    """The folder's LattePipeline with its transformer made fast, or a run's model in its place, on a device."""
    try:
        import diffusers
    except ImportError:
        raise ValueError("sample: text to video needs diffusers: pip install 'latte_fast[t2v]'") from None
    given = {"transformer": None} if trained else {}
    try:
        pipe = diffusers.LattePipeline.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, **given)
        if request.temporal_decoder:
            kind = diffusers.AutoencoderKLTemporalDecoder
            pipe.vae = kind.from_pretrained(str(folder), subfolder="vae_temporal_decoder", torch_dtype=dtype)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"sample: pretrained must hold a LattePipeline, got {folder}: {reason}") from error
    learned = trained is not None and trained.model.config.channels_out == 2 * trained.model.config.in_channels
    config = dict(pipe.scheduler.config)
    settings = scheduler_settings(trained.config.diffusion, learned) if trained else {}
    kind = getattr(diffusers, f"{request.scheduler}Scheduler") if request.scheduler else type(pipe.scheduler)
    if kind is not diffusers.DDPMScheduler:
        # the pipeline gives the variance's channels to any scheduler whose config says it is learned
        config.pop("variance_type", None), settings.pop("variance_type", None)
    if "clip_sample" not in config:
        # from a scheduler that never clips; latents are not bounded
        settings["clip_sample"] = False
    # keywords win over the config, where defaults of the folder's scheduler are left out
    pipe.scheduler = kind.from_config(config, **settings)
    if trained:
        model = trained.model.to(dtype)
        if not learned:
            model.register_forward_hook(_twice)
        pipe.register_modules(transformer=model)
    else:
        report = patch(pipe)
        if not report.swapped:
            raise ValueError(f"sample: the transformer can't be made fast: {report}")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def scheduler_settings(process: DiffusionConfig, learned: bool) -> dict[str, Any]:
    """What a run's process is to diffusers' schedulers; `learned` says whether its variance is."""
    betas = beta_schedule(process.schedule, process.steps)
    return {
        "num_train_timesteps": process.steps,
        "prediction_type": PREDICTIONS[process.prediction],
        "beta_schedule": process.schedule,
        # of the linear schedule, which diffusers makes from its ends
        "beta_start": float(betas[0]),
        "beta_end": float(betas[-1]),
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "variance_type": "learned_range" if learned else "fixed_large",
    }


def _twice(module: nn.Module, args: Any, out: tuple[Tensor]) -> tuple[Tensor]:
    """The pipeline drops the second half of the channels; a model without a variance gets one to be dropped."""
    return (torch.cat([out[0], out[0]], dim=1),)


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
    trained: Trained | None = None,
) -> None:
    """Draws and writes how.count samples of the prompts in turn; every rank calls this and takes its share.

    Args:
        folder: of the pipeline.
        request: what to show.
        how: how to sample and to write.
        out: folder of the files, where none of their names may exist.
        ranks: that share the work.
        dtype: of weights and activations.
        trained: in the place of the folder's transformer, sampled by the process it was trained with.
    """
    check_folder(folder, request, how, trained)
    if trained:
        # the table of a model that was started from another may be made for another side than the run's
        side = trained.config.size
        request = replace(request, height=request.height or side, width=request.width or side)
    out = Path(out)
    numbers = range(how.count)
    files = [*(name for n in numbers for name in files_of(Chunk([n], 1), how)), NAMES]
    ranks.from_first(lambda: check_room(out, files))
    pipe = open_pipeline(folder, request, ranks.device, dtype, trained)
    ranks.from_first(lambda: make_room(out, files))
    mine = numbers[ranks.rank :: ranks.count]
    for number in tqdm(mine, desc="sample", unit="clip", disable=None if ranks.first else True):
        video = draw_text(pipe, request, how, number)
        prompt = request.prompts[number % len(request.prompts)]
        write_chunk(out, Chunk([number], 1), video[None], [prompt], how)
    ranks.barrier()
    if ranks.first:
        said = [request.prompts[n % len(request.prompts)] for n in numbers]
        write_names(out, how.__dict__ | request.__dict__, said)
