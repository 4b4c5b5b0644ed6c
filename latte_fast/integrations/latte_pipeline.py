"""Text to video from a local pipeline folder: diffusers' LattePipeline, made fast, as a source of clips."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from latte_fast.diffusion.noise import Use, generator, normal
from latte_fast.diffusion.schedule import beta_schedule
from latte_fast.distributed.ranks import Ranks
from latte_fast.integrations.patch import patch
from latte_fast.integrations.pipeline_folder import check_folder
from latte_fast.quantization.convert import quantize_or_refuse
from latte_fast.runs.config import DiffusionConfig
from latte_fast.runs.load import Trained
from latte_fast.sampling.files import all_files, check_room, sample_files
from latte_fast.sampling.request import Request, TextRequest

# diffusers' names for the predictions of a run's model
PREDICTIONS = {"epsilon": "epsilon", "start_x": "sample", "v": "v_prediction"}


def open_pipeline(
    folder: str | Path, request: TextRequest, device: torch.device, dtype: torch.dtype, trained: Trained | None = None
) -> Any:
    """Opens the folder's LattePipeline on a device, its transformer made fast or replaced by a run's model."""
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
        # the pipeline passes variance channels to any scheduler whose config says that the variance is learned
        config.pop("variance_type", None), settings.pop("variance_type", None)
    if "clip_sample" not in config:
        # the folder's scheduler never clips, and latents are not bounded
        settings["clip_sample"] = False
    # keywords override the config, which leaves out fields that are the defaults of the folder's scheduler
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
    """Returns a run's process as settings of diffusers' schedulers; `learned` says whether the variance is learned."""
    betas = beta_schedule(process.schedule, process.steps)
    return {
        "num_train_timesteps": process.steps,
        "prediction_type": PREDICTIONS[process.prediction],
        "beta_schedule": process.schedule,
        # for the linear schedule, which diffusers makes from its two ends
        "beta_start": float(betas[0]),
        "beta_end": float(betas[-1]),
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "variance_type": "learned_range" if learned else "fixed_large",
    }


def _twice(module: nn.Module, args: Any, out: tuple[Tensor]) -> tuple[Tensor]:
    """Doubles the output of a model without a variance, as the pipeline drops the second half of the channels."""
    return (torch.cat([out[0], out[0]], dim=1),)


class PipelineSource:
    """Draws clips from a LattePipeline; the samples show the prompts in turn.

    Each call has one prompt: in a batch the pipeline keeps the padding's embeddings, so that a video would depend on
    its neighbours.

    Args:
        pipe: LattePipeline to call.
        text: prompts and their options.
    """

    def __init__(self, pipe: Any, text: TextRequest):
        self.pipe, self.text = pipe, text
        self.network = getattr(pipe, "transformer", None)

    def batch(self, request: Request) -> int:
        return 1

    def names(self, request: Request) -> list[str]:
        return [self.prompt(number) for number in range(request.count)]

    def notes(self, request: Request) -> dict[str, Any]:
        return request.__dict__ | self.text.__dict__

    def prompt(self, number: int) -> str:
        return self.text.prompts[number % len(self.text.prompts)]

    def draw(
        self, request: Request, numbers: Sequence[int], tick: Callable[[], object] = lambda: None
    ) -> tuple[Tensor, list[str]]:
        videos = [self.draw_one(request, number, tick) for number in numbers]
        return torch.stack(videos), [self.prompt(number) for number in numbers]

    @torch.no_grad()
    def draw_one(self, request: Request, number: int, tick: Callable[[], object] = lambda: None) -> Tensor:
        """Draws sample `number` as uint8 (F, H, W, 3)."""
        pipe, text = self.pipe, self.text
        frames = text.frames or pipe.transformer.config.video_length

        def step(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            tick()
            return tensors

        video = pipe(
            self.prompt(number),
            negative_prompt=text.negative,
            num_inference_steps=request.steps,
            guidance_scale=request.scale,
            eta=request.eta,
            video_length=frames,
            height=text.height,
            width=text.width,
            enable_temporal_attentions=text.over_time and frames > 1,
            decode_chunk_size=text.decoded_at_once,
            clean_caption=False,
            output_type="pt",
            callback_on_step_end=step,
            **self.noise(request, number, frames),
        ).frames[0]  # (F, 3, H, W) in [0, 1]
        return (video.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu()

    def noise(self, request: Request, number: int, frames: int) -> dict[str, Any]:
        """Returns the first latents and the generator of later noise, both by the seed and the sample's number."""
        if self.text.seed_rule == "old":
            return {"generator": torch.Generator("cpu").manual_seed(request.seed * 1_000_003 + number)}
        config, factor = self.pipe.transformer.config, self.pipe.vae_scale_factor
        side = config.sample_size * factor
        height, width = ((pixels or side) // factor for pixels in (self.text.height, self.text.width))
        # drawn as (F, C, h, w) as for trained models, so that a number has the same noise in both
        first = normal(request.seed, number, (frames, config.in_channels, height, width), Use.START)
        later = int(generator(request.seed, number, Use.STEP).integers(2**63))
        return {
            "latents": first.transpose(0, 1)[None].to(self.pipe.transformer.dtype),
            "generator": torch.Generator("cpu").manual_seed(later),
        }


def sample_text(
    folder: str | Path,
    text: TextRequest,
    request: Request,
    out: str | Path,
    ranks: Ranks,
    dtype: torch.dtype,
    trained: Trained | None = None,
    resume: bool = False,
    precision: str | None = None,
) -> None:
    """Draws and writes a request's samples of the prompts in turn; every rank calls this and takes its share.

    Args:
        folder: folder of the pipeline.
        text: prompts and their options.
        request: options of sampling and of the files.
        out: folder for the files, none of which may exist.
        ranks: processes that share the work.
        dtype: data type of weights and activations.
        trained: model that replaces the folder's transformer, sampled by the process it was trained with.
        resume: whether to go on with the same request into the same folder.
        precision: "fp8" or "int8" for 8-bit linear layers.
    """
    check_folder(folder, text, request, trained)
    if trained:
        # a model that started from another may have a position table for another size than the run's
        side = trained.config.size
        text = replace(text, height=text.height or side, width=text.width or side)
    # checked before loading, which takes minutes
    if not resume:
        ranks.from_first(lambda: check_room(Path(out), all_files(request, 1)))
    pipe = open_pipeline(folder, text, ranks.device, dtype, trained)
    if precision is not None:
        quantize_or_refuse(pipe.transformer, precision)
    sample_files(PipelineSource(pipe, text), request, out, ranks, resume=resume)
