"""A diffusers pipeline for models of classes: a Latte, a VAE, and any scheduler of diffusers."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from latte_fast.config import LatteConfig
from latte_fast.integrations.latte_pipeline import PREDICTIONS, scheduler_settings
from latte_fast.models.latte.model import Latte
from latte_fast.runs.load import Trained

# diffusers declares few types; its loader looks for ModelMixin by name in this file
_Model: Any = ModelMixin
_Pipeline: Any = DiffusionPipeline
OUTPUTS = ("pt", "np", "pil", "latent")


class ClassTransformer(_Model, ConfigMixin):
    """A Latte as a model of diffusers: (B, C, F, H, W), t (B,), classes (B,) -> (B, 2C, F, H, W).

    Args:
        sizes: fields of LatteConfig.
        classes: names of the classes, in the order of their numbers.
    """

    @register_to_config
    def __init__(self, sizes: dict[str, Any], classes: Sequence[str] = ()):
        super().__init__()
        self.latte = Latte(**sizes)
        if self.latte.config.extras == 78:
            raise ValueError("ClassTransformer: extras must be 1 or 2, a model with or without classes, got 78")
        self.names = list(classes)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a model by all options of diffusers' models."""
        loaded = super().from_pretrained(*args, **kwargs)
        wanted = kwargs.get("torch_dtype") or kwargs.get("dtype")
        if isinstance(wanted, torch.dtype):  # the tables of positions are made in float32
            (loaded[0] if isinstance(loaded, tuple) else loaded).to(wanted)
        return loaded

    @classmethod
    def of(cls, latte: Latte, classes: Sequence[str] = ()) -> "ClassTransformer":
        """Returns a model that holds this very Latte."""
        if type(latte) is not Latte:
            raise ValueError(f"ClassTransformer: latte must be a Latte, got a {type(latte).__name__}")
        with torch.device("meta"):
            model = cls(asdict(latte.config), list(classes))
        model.latte = latte
        return model

    @property
    def sizes(self) -> LatteConfig:
        return self.latte.config

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        t = timestep.reshape(-1).expand(hidden_states.shape[0])
        out = self.latte(hidden_states.transpose(1, 2), t, class_labels).transpose(1, 2)
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)


@dataclass
class ClassPipelineOutput(BaseOutput):
    """The result of a call with return_dict=True."""

    frames: Any


class LatteClassPipeline(_Pipeline):
    """Clips of classes, or without classes, by any scheduler of diffusers.

    Args:
        transformer: a ClassTransformer.
        scheduler: scheduler of diffusers with the process that the model was trained with.
        vae: an AutoencoderKL; without one the model's output is pixels.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(self, transformer: ClassTransformer, scheduler: Any, vae: Any | None = None):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        channels = transformer.sizes.in_channels
        if vae is not None and channels != vae.config.latent_channels:
            rule = f"{vae.config.latent_channels}, those of the vae's latents"
            raise ValueError(f"LatteClassPipeline: in_channels must be {rule}, got {channels}")
        self.vae_scale_factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def of(cls, trained: Trained, vae: Any | None = None, scheduler: str = "DDIM") -> "LatteClassPipeline":
        """Returns the pipeline of a trained model; `scheduler` names one of diffusers, such as DPMSolverMultistep."""
        import diffusers

        process = trained.config.diffusion
        if process.prediction not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise ValueError(f"convert: prediction must be one of {known} for a pipeline, got {process.prediction}")
        learned = trained.adapter.learns_sigma()
        kind: Any = getattr(diffusers, f"{scheduler}Scheduler")
        settings = scheduler_settings(process, learned)
        if kind is not diffusers.DDPMScheduler:
            settings.pop("variance_type")
        # pixels end in [-1, 1], latents anywhere
        made = kind.from_config({"clip_sample": vae is None}, **settings)
        return cls(ClassTransformer.of(trained.model, trained.classes).eval(), made, vae)

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    def class_ids(self, class_labels: Any, count: int) -> list[int] | None:
        """Returns the numbers of classes given by number or name; None for a model without classes."""
        sizes = self.transformer.sizes
        if sizes.extras == 1:
            if class_labels is not None:
                raise ValueError(f"LatteClassPipeline: class_labels must be None without classes, got {class_labels!r}")
            return None
        if isinstance(class_labels, Tensor):
            class_labels = class_labels.reshape(-1).tolist()
        given = list(class_labels) if isinstance(class_labels, (list, tuple)) else [class_labels] * count
        names = self.transformer.names
        ids = [names.index(label) if label in names else label for label in given]
        for label in ids:
            if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < sizes.num_classes:
                rule = f"numbers from 0 to {sizes.num_classes - 1}, or of {', '.join(names[:5]) or 'no names'}"
                raise ValueError(f"LatteClassPipeline: class_labels must be {rule}, got {label!r}")
        return ids

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        num_videos: int = 1,
        eta: float = 0.0,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        decode_chunk_size: int = 16,
    ) -> Any:
        """Draws clips -> an object whose `frames` are (B, F, 3, H, W) in [0, 1] ("pt"), or as `output_type` says.

        Args:
            class_labels: numbers or names, one a clip; one alone is repeated `num_videos` times.
            num_inference_steps: number of the scheduler's steps.
            guidance_scale: guidance scale; 1 is no guidance.
            num_videos: number of clips where class_labels is not a list.
            eta: noise of DDIM, 1 as much as DDPM's.
            generator: torch.Generator, or one for each clip.
            latents: first noise (B, C, F, h, w); by default drawn.
            output_type: pt, np, pil, or latent for the latents (B, C, F, h, w).
            return_dict: whether to return an object with `frames` instead of a tuple.
            callback_on_step_end: function called with (pipe, step, time step, tensors), which may return others.
            callback_on_step_end_tensor_inputs: names of the tensors that it gets: latents.
            decode_chunk_size: number of frames that the VAE decodes at once.
        """
        sizes = self.transformer.sizes
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            rule = f"names of {', '.join(self._callback_tensor_inputs)}"
            raise ValueError(f"LatteClassPipeline: callback_on_step_end_tensor_inputs must be {rule}, got {unknown[0]}")
        if output_type not in OUTPUTS:
            rule = f"one of {', '.join(OUTPUTS)}"
            raise ValueError(f"LatteClassPipeline: output_type must be {rule}, got {output_type!r}")
        if self.vae is None and sizes.in_channels != 3 and output_type != "latent":
            rule = f"latent without a vae, as {sizes.in_channels} channels are no pixels"
            raise ValueError(f"LatteClassPipeline: output_type must be {rule}, got {output_type!r}")
        ids = self.class_ids(class_labels, num_videos)
        guided = guidance_scale != 1.0
        if guided and (ids is None or not sizes.class_dropout_prob):
            rule = "1 for a model that was trained without dropped classes"
            raise ValueError(f"LatteClassPipeline: guidance_scale must be {rule}, got {guidance_scale}")
        device, dtype = self._execution_device, self.transformer.dtype
        clips = num_videos if ids is None else len(ids)
        shape = (clips, sizes.in_channels, sizes.num_frames, sizes.input_size, sizes.input_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"LatteClassPipeline: latents must be {shape}, got {tuple(latents.shape)}")
        labels = None
        if ids is not None:
            labels = torch.tensor(ids + ([sizes.num_classes] * clips if guided else []), device=device)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = latents.to(device, dtype) * self.scheduler.init_noise_sigma
        extra = self.step_keywords(eta, generator)
        self._num_timesteps = len(self.scheduler.timesteps)
        with self.progress_bar(total=self._num_timesteps) as bar:
            for i, t in enumerate(self.scheduler.timesteps):
                latents = self.step(latents, t, labels, guidance_scale, extra)
                if callback_on_step_end is not None:
                    given = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                    latents = callback_on_step_end(self, i, t, given).pop("latents", latents)
                bar.update()
        video = latents if output_type == "latent" else self.decode(latents, decode_chunk_size, output_type)
        self.maybe_free_model_hooks()
        return ClassPipelineOutput(frames=video) if return_dict else (video,)

    def step_keywords(self, eta: float, generator: Any) -> dict[str, Any]:
        """Returns those of eta and generator that the scheduler's step takes."""
        import inspect

        taken = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in (("eta", eta), ("generator", generator)) if name in taken}

    def step(self, latents: Tensor, t: Tensor, labels: Tensor | None, scale: float, extra: dict[str, Any]) -> Tensor:
        """Takes one step of the scheduler, (B, C, F, h, w) each."""
        channels = latents.shape[1]
        x = self.scheduler.scale_model_input(latents, t)
        guided = labels is not None and labels.shape[0] > latents.shape[0]
        out = self.transformer(torch.cat([x, x]) if guided else x, t, labels, return_dict=False)[0]
        mean, rest = out[:, :channels], out[:, channels:]
        if guided:
            given, null = mean.chunk(2)
            mean, rest = null + scale * (given - null), rest.chunk(2)[0]
        learned = getattr(self.scheduler.config, "variance_type", None) in ("learned", "learned_range")
        mean = torch.cat([mean, rest], dim=1) if learned else mean
        return self.scheduler.step(mean, t, latents, **extra, return_dict=False)[0].to(latents.dtype)

    def decode(self, latents: Tensor, chunk: int, output_type: str) -> Any:
        """Decodes (B, C, F, h, w) to clips of an output type."""
        if self.vae is None:
            return self.video_processor.postprocess_video(latents, output_type=output_type)
        frames = latents.transpose(1, 2).flatten(0, 1) / self.vae.config.scaling_factor  # (B * F, C, h, w)
        parts = [self.vae.decode(part.to(self.vae.dtype)).sample for part in frames.split(chunk)]
        video = torch.cat(parts).unflatten(0, (latents.shape[0], -1)).transpose(1, 2)  # (B, 3, F, H, W)
        return self.video_processor.postprocess_video(video, output_type=output_type)


def save_pipeline(trained: Trained, out: str | Path, vae: str | Path | None, dtype: torch.dtype | None = None) -> None:
    """Writes a trained model of classes as a pipeline's folder, with the VAE of a folder, or of the run."""
    if not isinstance(trained.model, Latte) or type(trained.model) is not Latte:
        kind = type(trained.model).__name__
        raise ValueError(f"convert: source must be a Latte with or without classes for a pipeline, got a {kind}")
    place = str(vae or trained.config.vae)
    network = None
    if place != "identity":
        folder = next((f for f in (Path(place), Path(place) / "vae") if (f / "config.json").is_file()), None)
        if folder is None:
            raise ValueError(f"convert: vae must be identity or the folder of an AutoencoderKL, got {place}")
        network = AutoencoderKL.from_pretrained(str(folder), local_files_only=True)
    elif trained.model.config.in_channels != 3:
        rule = f"the folder of an AutoencoderKL for a model of {trained.model.config.in_channels} channels"
        raise ValueError(f"convert: vae must be {rule}, got identity")
    pipe = LatteClassPipeline.of(trained, network)
    pipe = pipe if dtype is None else pipe.to(dtype)
    pipe.save_pretrained(str(out))
