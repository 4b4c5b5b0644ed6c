"""Sources of samples: a trained model, or one in training, with its VAE; integrations/ has a source for pipelines."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latte_fast.codecs.vae import VAE, frame_factor_of, is_framewise
from latte_fast.data.text import Texts
from latte_fast.diffusion import Diffusion
from latte_fast.diffusion.noise import Use, normal
from latte_fast.media.pixels import to_pixels
from latte_fast.models.adapter import Adapter, Condition, Conditions
from latte_fast.modules.modulation import ModulationTable
from latte_fast.modules.precision import Precisions
from latte_fast.modules.sequence import decoded, in_halves
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.config import DiffusionConfig
from latte_fast.runs.load import Trained
from latte_fast.runs.plan import Plan, check_made_for, check_precision, load_plan, weights_digest
from latte_fast.sampling.chunks import labels_of
from latte_fast.sampling.engine import generate, sampling_process
from latte_fast.sampling.graphs import PlanGraphs, held_back
from latte_fast.sampling.known import Known
from latte_fast.sampling.planned import Denoiser, plain_plan, run_plan, times_of, whole_process
from latte_fast.sampling.request import PLANNED, Request
from latte_fast.sampling.windows import windowed


class Source(Protocol):
    """Draws samples by number: sample i is the same on any rank and beside any other samples."""

    def batch(self, request: Request) -> int:
        """Returns the number of samples drawn at once."""
        ...

    def names(self, request: Request) -> list[str]:
        """Returns what each sample of a request shows."""
        ...

    def notes(self, request: Request) -> dict[str, Any]:
        """Returns the request as plain values, to be kept beside the samples."""
        ...

    def draw(
        self, request: Request, numbers: Sequence[int], tick: Callable[[], object] = lambda: None
    ) -> tuple[Tensor, list[str]]:
        """Draws samples `numbers` as uint8 (B, F, H, W, 3), and their names; calls `tick` at each step."""
        ...


@runtime_checkable
class FilmSource(Source, Protocol):
    """A source whose films may be longer than memory holds."""

    def steps(self, request: Request) -> int:
        """Returns the number of steps that the films of a batch take."""
        ...

    def films(
        self, request: Request, numbers: Sequence[int], out: Path, tick: Callable[[int], object]
    ) -> AbstractContextManager[tuple[Sequence[Iterator[Tensor]], list[str]]]:
        """Draws samples `numbers`: each film's frames, uint8 (n, H, W, 3), a part at a time, and their names.

        The folder `out` may hold what a stopped call left, as long as the context lasts.
        """
        ...


class ModelSource:
    """Draws samples from a model through its family's adapter, by the process that it is trained with.

    Args:
        model: function called with (x, t, **condition), x of (B, F, C, h, w).
        adapter: adapter of the model's family.
        process: diffusion process that the model is trained with.
        vae: VAE that decodes the model's samples.
        shape: shape of a sample, (F, C, h, w).
        guidable: whether the model was trained with dropped conditions, which guidance needs.
        device: device of the model.
        dtype: data type of the model's input.
        wanted: labels, in turn over the samples; where there are none, they are drawn by the seed.
        in_training: whether the weights change: plans of other weights are then followed, and no tables are made.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        adapter: Adapter,
        process: DiffusionConfig,
        vae: VAE,
        shape: Sequence[int],
        guidable: bool,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        wanted: Sequence[int] = (),
        in_training: bool = False,
    ):
        self.in_training = in_training
        self.model, self.adapter, self.process, self.vae = model, adapter, process, vae
        self.shape, self.guidable, self.device, self.dtype = tuple(shape), guidable, device, dtype
        self.wanted = list(wanted)
        self.network: nn.Module | None = None  # whose weights a resumed request must find again
        self._made_for: dict[str, Any] | None = None
        self._graphs: PlanGraphs | None = None

    def batch(self, request: Request) -> int:
        return request.batch

    def names(self, request: Request) -> list[str]:
        return self.condition_for(range(request.count), request.seed).names

    def notes(self, request: Request) -> dict[str, Any]:
        # nothing of steps where none is named, as folders of earlier versions say nothing either
        return {name: x for name, x in vars(request).items() if name != "precise_steps" or x}

    def condition_for(self, numbers: Sequence[int], seed: int) -> Condition:
        choices = self.adapter.choices
        labels = labels_of(numbers, self.wanted, choices, seed).tolist() if choices else list(numbers)
        given, null, names = self.adapter.condition_for(labels, self.guidable)
        return Condition(self._in_dtype(given), self._in_dtype(null), names)

    def _in_dtype(self, given: Conditions) -> Conditions:
        return {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in given.items()}

    @torch.no_grad()
    def draw(
        self, request: Request, numbers: Sequence[int], tick: Callable[[], object] = lambda: None
    ) -> tuple[Tensor, list[str]]:
        latents, names = self.latents(request, numbers, tick)
        return self.pixels(latents), names

    @torch.no_grad()
    def latents(
        self,
        request: Request,
        numbers: Sequence[int],
        tick: Callable[[], object] = lambda: None,
        part: int = 0,
        known: Known | None = None,
    ) -> tuple[Tensor, list[str]]:
        """Draws the latents (B, f, C, h, w) of samples `numbers`, and their names.

        Args:
            request: number of frames, and how samples are drawn.
            numbers: numbers of the samples.
            tick: function called at each step.
            part: number of the clip among those that make up a film; each has noise of its own.
            known: first frames that are there already; what is drawn in their place is of no use.
        """
        merged = frame_factor_of(self.vae)
        if request.frames and request.frames % merged:
            raise ValueError(f"sample: frames must be a multiple of the codec's {merged}, got {request.frames}")
        frames = request.frames // merged if request.frames else self.shape[0]
        plan = self.plan_for(request)
        model = windowed(self.model, self.shape[0], frames)
        condition = self.guided_condition(request, numbers)
        if plan is not None:
            null = condition.null if request.scale != 1.0 else {}
            noise = self.noise(numbers, (frames, *self.shape[1:]), request.seed, part)
            denoiser = self.denoiser(model, condition.given, null, plan.scale, known)
            tables = request.lossless or bool(request.plan and not self.in_training)
            return self.follow(plan, denoiser, noise, tables, lambda *_: tick()), condition.names
        model = model if known is None else known.around(model)

        def ticking(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
            out = model(x, t, **kwargs)
            tick()
            return out

        latents = generate(
            sampling_process(self.process, request.steps, self.adapter.learns_sigma()),
            ticking,
            numbers,
            (frames, *self.shape[1:]),
            seed=request.seed,
            method=request.method,
            scale=request.scale,
            condition=condition.given,
            null=condition.null,
            eta=request.eta,
            clip_denoised=self.vae.factor == 1,
            device=self.device,
            dtype=self.dtype,
            step_keywords=self.adapter.step_keywords(request.steps),
            part=part,
        )
        return latents, condition.names

    def guided_condition(self, request: Request, numbers: Sequence[int]) -> Condition:
        """Returns the condition of samples; raises ValueError where guidance needs a null condition that is not."""
        condition = self.condition_for(numbers, request.seed)
        if request.scale != 1.0 and condition.given and not condition.null:
            rule = "1 for a model trained without dropped labels"
            raise ValueError(f"sample: guidance must be {rule}, got {request.scale}")
        return condition

    def pixels(self, latents: Tensor) -> Tensor:
        """Returns the frames of latents, uint8 (B, F, H, W, 3)."""
        return decoded(self.network, is_framewise(self.vae), lambda x: to_pixels(self.vae.decode(x)), latents)

    def plan_for(self, request: Request) -> Plan | None:
        """Returns the plan that a request asks for or needs, checked against this model; None for the plain loops."""
        flow = self.process.prediction == "flow"
        if flow and (request.method == "ddpm" or request.eta):
            raise ValueError("sample: method must be one without noise for rectified flow, such as euler or heun")
        followed = request.followed
        if not followed and not flow and request.method not in PLANNED:
            return None
        if followed and request.frames not in (None, self.shape[0]):
            rule = f"the model's {self.shape[0]} with {followed}, as windows are not planned"
            raise ValueError(f"sample: frames must be {rule}, got {request.frames}")
        keywords = self.adapter.step_keywords(request.steps)
        sampler = (self.whole, request.method, request.steps, request.scale, keywords)
        precisions = Precisions(self.network)
        known = precisions.known
        plan = load_plan(request.plan) if request.plan else plain_plan(*sampler)
        if request.precise_steps and not precisions.places:
            rule = "left out for a model without 8-bit layers"
            raise ValueError(f"sample: precise steps must be {rule}, got {', '.join(request.precise_steps)}")
        if request.precise_steps or not request.plan:
            plan = plan.in_precision(known[0], request.precise_steps)
        check_precision(plan, known)
        if request.plan:
            check_made_for(plan, plain_plan(*sampler, **self.made_for()))
        return plan

    @functools.cached_property
    def whole(self) -> Diffusion:
        return whole_process(self.process, self.adapter.learns_sigma())

    def made_for(self) -> dict[str, Any]:
        """Returns what a plan for this model holds good for, beside the sampler, its steps and the guidance."""
        if self._made_for is None:
            assert self.network is not None
            process = {"schedule": self.process.schedule, "prediction": self.process.prediction}
            weights = {} if self.in_training else {"weights": weights_digest(self.network)}
            self._made_for = {**weights, "shape": list(self.shape), **process}
        return self._made_for

    def denoiser(
        self,
        model: Callable[..., Tensor],
        given: Conditions,
        null: Conditions,
        scale: float,
        known: Known | None = None,
    ) -> Denoiser:
        given, null = ({name: x.to(self.device) for name, x in kind.items()} for kind in (given, null))
        clip = self.vae.factor == 1
        return Denoiser(model, self.whole, given, null, scale, StackReuse(), clip=clip, dtype=self.dtype, known=known)

    def noise(self, numbers: Sequence[int], shape: Sequence[int], seed: int, part: int = 0) -> Tensor:
        return torch.stack([normal(seed, number, shape, Use.START, part) for number in numbers]).to(self.device)

    def follow(
        self,
        plan: Plan,
        denoiser: Denoiser,
        noise: Tensor,
        tables: bool = False,
        seen: Callable[..., object] = lambda *_: None,
        graphs: bool | None = None,
    ) -> Tensor:
        """Returns the latents that a plan makes of noise.

        Args:
            plan: plan to follow.
            denoiser: what makes the predictions of its rows.
            noise: x_T.
            tables: whether all modulations are computed before the first step.
            seen: function called after each step.
            graphs: whether steps are replayed as CUDA graphs; by default where the GPU would wait for the host.
        """
        net = self.network
        precisions = Precisions(net)
        with contextlib.ExitStack() as stack:
            if set(plan.precisions) != {precisions.known[0]}:
                check_precision(plan, precisions.known)
                denoiser.precisions = stack.enter_context(precisions.attached())
            if tables:
                assert net is not None
                times = times_of(plan, self.device)
                tabulated = times
                if denoiser.known is not None:
                    batch = noise.shape[0] * (2 if denoiser.doubled else 1)
                    tabulated = denoiser.known.steps(times[:, None].expand(-1, batch), noise.shape[1])
                denoiser.table = self.adapter.tabulate(net, tabulated, **denoiser.conditions)
                if graphs is None:
                    graphs = held_back(lambda: denoiser.guided(noise, plan.rows[0], times[0]), self.device)
                if graphs:
                    denoiser.reuse, denoiser.table = self.graphs_for(plan, denoiser, noise.shape[0])
                stack.enter_context(denoiser.table.attached(net))
            return run_plan(plan, net if plan.computed < len(plan.rows) else None, denoiser, noise, seen)

    def graphs_for(self, plan: Plan, denoiser: Denoiser, batch: int) -> tuple[StackReuse, ModulationTable]:
        """Gives a denoiser the graphs of a plan, kept from the batch before where they fit, and what they read."""
        assert self.network is not None and denoiser.table is not None
        if self._graphs is not None and self._graphs.fits(plan, denoiser.table, batch):
            self._graphs.table.take(denoiser.table)
        else:
            self._graphs = PlanGraphs(self.network, self.call, plan, denoiser.table, batch)
        denoiser.replays = (self._graphs.reused, self._graphs.computed)
        return self._graphs.reuse, self._graphs.table

    def call(self, net: nn.Module, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self.adapter.call(net, x, t, **conditions)


def trained_source(
    trained: Trained, vae: VAE, wanted: Sequence[str] = (), dtype: torch.dtype = torch.float32
) -> ModelSource:
    """Returns a source that draws from a trained model.

    Args:
        trained: trained model and its configuration.
        vae: VAE that decodes the model's samples.
        wanted: classes or captions by number or name, in turn over the samples; by default drawn by the seed.
        dtype: data type of weights and activations.
    """
    adapter, text = trained.adapter, trained.config.data.text
    if text:
        adapter = type(adapter)(adapter.config, adapter.classes, Texts(text))
    frames, channels, height, width = adapter.sample_shape(trained.config.size, vae.factor)
    if vae.channels != channels:
        rule = f"the model's {channels} channels, got {vae.channels}; give --vae the folder that encoded the data"
        raise ValueError(f"sample: vae must have {rule}")
    numbers = [label_number(adapter, name) for name in wanted]
    device = next(trained.model.parameters()).device
    net = trained.model.to(dtype)

    def model(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return adapter.call(net, x, t, **conditions)

    model = in_halves(net, model)
    guidable = adapter.guidable(trained.config.model.class_dropout_prob)
    shape = (frames, channels, height, width)
    source = ModelSource(model, adapter, trained.config.diffusion, vae, shape, guidable, device, dtype, numbers)
    source.network = net
    return source


def label_number(adapter: Adapter, name: str) -> int:
    """Returns the number of a class or caption that is given by name or number."""
    what, known = adapter.labels, adapter.label_names()
    if not adapter.choices:
        raise ValueError(f"sample: classes must be left out for a model without, got {name!r}")
    if name in known:
        return list(known).index(name)
    if name.isdecimal() and int(name) < adapter.choices:
        return int(name)
    names = f" or one of {', '.join(known[:20])}{', ...' * (len(known) > 20)}" if known else ""
    other = "; --pretrained takes any prompt" if what == "captions" else ""
    raise ValueError(f"sample: {what} must be below {adapter.choices}{names}, got {name!r}{other}")
