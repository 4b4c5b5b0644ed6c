"""Long films of any prompt: a LattePipeline's T5, transformer and VAE as a source of clips."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latte_fast.codecs.vae import Autoencoder
from latte_fast.config import LatteT2VConfig
from latte_fast.diffusion.schedule import beta_schedule
from latte_fast.distributed.ranks import Ranks
from latte_fast.integrations.latte_pipeline import PREDICTIONS, open_pipeline
from latte_fast.integrations.pipeline_folder import check_folder
from latte_fast.long_films.request import LongRequest, default_steps
from latte_fast.long_films.sample import draw_films
from latte_fast.long_films.source import LongSource
from latte_fast.models.adapter import Condition
from latte_fast.models.latte_t2v.adapter import LatteT2VAdapter
from latte_fast.runs.config import DiffusionConfig
from latte_fast.runs.load import Trained
from latte_fast.sampling.request import Request, TextRequest
from latte_fast.sampling.source import ModelSource


class PromptAdapter(LatteT2VAdapter):
    """The adapter of a pipeline's transformer, whose T5 embeds a prompt and the negative prompt, one film at a time.

    Args:
        config: configuration of the transformer.
        pipe: pipeline with its tokenizer and text encoder.
        text: prompts, in turn over the films.
    """

    def __init__(self, config: LatteT2VConfig, pipe: Any, text: TextRequest):
        super().__init__(config)
        self.pipe, self.text, self.choices = pipe, text, len(text.prompts)
        self._embedded: dict[int, tuple[Tensor, Tensor]] = {}  # of the latest prompt

    @torch.no_grad()
    def condition_for(self, labels: Sequence[int], guidable: bool) -> Condition:
        (label,) = labels
        if label not in self._embedded:
            prompt, device = self.text.prompts[label], self.pipe.transformer.device
            self._embedded = {
                label: self.pipe.encode_prompt(
                    prompt, negative_prompt=self.text.negative, device=device, clean_caption=False
                )
            }
        given, null = ({"encoder_hidden_states": states} for states in self._embedded[label])
        return Condition(given, null, [self.text.prompts[label]])

    def call(self, model: nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """Calls a transformer, whose output a pipeline may double where it has no variance."""
        out = model(x.transpose(1, 2), t, return_dict=False, **conditions)[0].transpose(1, 2)
        return out if self.learns_sigma() else out[:, :, : x.shape[2]]


class PromptSource(ModelSource):
    """Draws clips of prompts, one at a time, as the embeddings of prompts differ in length."""

    adapter: PromptAdapter

    def batch(self, request: Request) -> int:
        return 1

    def names(self, request: Request) -> list[str]:
        prompts = self.adapter.text.prompts
        return [prompts[number % len(prompts)] for number in range(request.count)]

    def notes(self, request: Request) -> dict[str, Any]:
        return request.__dict__ | self.adapter.text.__dict__


def prompt_source(pipe: Any, text: TextRequest, trained: Trained | None = None) -> PromptSource:
    """Returns a source of clips of prompts, by the process of a run or that of the pipeline's scheduler."""
    net = pipe.transformer
    names = {field.name for field in fields(LatteT2VConfig)}
    held = vars(net.config) if trained else dict(net.config)
    config = LatteT2VConfig(**{name: value for name, value in held.items() if name in names})
    adapter = PromptAdapter(config, pipe, text)
    process = trained.config.diffusion if trained else process_of(pipe.scheduler)
    dtype = next(net.parameters()).dtype
    vae = Autoencoder(pipe.vae, "vae", net.device, dtype)
    side = config.sample_size * vae.factor
    height, width = ((pixels or side) // vae.factor for pixels in (text.height, text.width))
    shape = (config.video_length, config.in_channels, height, width)

    def model(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return adapter.call(net, x, t, **conditions)

    wanted = range(len(text.prompts))
    source = PromptSource(model, adapter, process, vae, shape, True, net.device, dtype, wanted)
    source.network = net
    return source


def process_of(scheduler: Any) -> DiffusionConfig:
    """Returns the process that a diffusers scheduler samples; raises ValueError where it is not one of ours."""
    known = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    prediction = known.get(scheduler.config.prediction_type)
    betas = np.asarray(scheduler.betas, dtype=np.float64)
    for schedule in ("linear", "squaredcos_cap_v2"):
        if prediction and len(betas) > 20 and np.allclose(betas, beta_schedule(schedule, len(betas)), atol=1e-6):
            return DiffusionConfig(schedule=schedule, steps=len(betas), prediction=prediction)  # type: ignore[arg-type]
    got = f"{scheduler.config.beta_schedule} and {scheduler.config.prediction_type}"
    raise ValueError(f"sample: the folder's scheduler must have the linear or cosine schedule with --long, got {got}")


def sample_prompts(
    folder: str | Path,
    text: TextRequest,
    request: LongRequest,
    steps: int | None,
    out: str | Path,
    ranks: Ranks,
    dtype: torch.dtype,
    trained: Trained | None = None,
    resume: bool = False,
) -> None:
    """Draws long films of prompts and writes them to the folder `out`; every rank calls this.

    Args:
        folder: folder of the pipeline.
        text: prompts and their options.
        request: number of frames, and how films are drawn.
        steps: number of sampling steps; None is that of the request, of fifo the next that divides into windows.
        out: folder for the files.
        ranks: processes that share the films.
        dtype: data type of weights and activations.
        trained: model that replaces the folder's transformer, sampled by the process it was trained with.
        resume: whether to go on with the same request into the same folder.
    """
    check_folder(folder, text, request, trained)
    pipe = open_pipeline(folder, text, ranks.device, dtype, trained)
    source = prompt_source(pipe, text, trained)
    if steps is None:
        request = replace(request, steps=default_steps(request.kind, source.shape[0], request.steps))
    films = LongSource(source, trained.config.diffusion.frame_steps if trained else 0.0)
    draw_films(films, films.complete(request), out, ranks, resume)
