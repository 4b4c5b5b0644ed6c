"""A step of a sampler on windows of films, each frame at a step of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latte_fast.diffusion import Diffusion
from latte_fast.diffusion.guidance import guided
from latte_fast.long_films.request import LongRequest
from latte_fast.sampling.engine import sampling_process
from latte_fast.sampling.source import ModelSource


class Stepper:
    """Calls a model on windows of films and takes a sampler's step.

    Args:
        source: model, its process and its VAE.
        request: sampler, number of steps and guidance.
        numbers: numbers of the samples, B films.
    """

    def __init__(self, source: ModelSource, request: LongRequest, numbers: Sequence[int]):
        self.source, self.request, self.numbers = source, request, list(numbers)
        self.process: Diffusion = sampling_process(source.process, request.steps, source.adapter.learns_sigma())
        condition = source.guided_condition(request, numbers)
        self.given = {name: x.to(source.device) for name, x in condition.given.items()}
        self.null = {name: x.to(source.device) for name, x in condition.null.items()} if request.scale != 1.0 else {}
        self.keywords = list(reversed(source.adapter.step_keywords(request.steps)))  # by step, the last one noise
        self.noisy = request.method == "ddpm" or request.eta > 0
        self._conditions: dict[int, dict[str, Tensor]] = {}
        self._levels: dict[tuple[tuple[int, ...], ...], Tensor] = {}

    def conditions(self, windows: int) -> dict[str, Tensor]:
        """Returns the model's keywords for so many windows of all films, the same tensors in every call."""
        if windows not in self._conditions:
            halves = [self.given, self.null] if self.null else [self.given]
            repeated = [{n: x.repeat(windows, *(1,) * (x.dim() - 1)) for n, x in half.items()} for half in halves]
            self._conditions[windows] = {n: torch.cat([half[n] for half in repeated]) for n in self.given}
        return self._conditions[windows]

    def levels(self, levels: Sequence[Sequence[int]]) -> Tensor:
        """Returns the steps (n B, f) of n windows; a clean frame's, -1, is shown as step 0.

        They are kept, as a copy from the host would wait for the device, and a queue has the same ones all the time.
        """
        key = tuple(map(tuple, levels))
        if key not in self._levels:
            if len(self._levels) > 4 * self.request.steps:
                self._levels.clear()
            t = torch.tensor(key).clamp(min=0).repeat_interleave(len(self.numbers), 0)
            self._levels[key] = t.to(self.source.device)
        return self._levels[key]

    def keywords_at(self, level: int) -> Mapping[str, Any]:
        return self.keywords[max(level, 0)] if self.keywords else {}

    @torch.no_grad()
    def outputs(self, x: Tensor, t: Tensor, keywords: Mapping[str, Any]) -> Tensor:
        """Returns the model's guided output for windows (n B, f, C, h, w) at steps (n B, f) or (n B,)."""
        source = self.source

        def in_dtype(x: Tensor, t: Tensor, **given: Any) -> Tensor:
            return source.model(x.to(source.dtype), t, **given, **keywords).float()

        model = guided(in_dtype, self.request.scale) if self.null else in_dtype
        return model(x, self.process.model_time(t), **self.conditions(x.shape[0] // len(self.numbers)))

    @torch.no_grad()
    def update(self, out: Tensor, x: Tensor, t: Tensor, noise: Tensor | None) -> Tensor:
        """Takes a step at each frame: x (N, f, C, h, w) at steps t (N, f) and the model's output -> x a step on."""
        if self.process.prediction == "flow":
            return self.along_line(out, x, t)
        given: dict[str, Any] = {"draw": torch.zeros_like if noise is None else lambda _: noise}
        given["clip_denoised"] = self.source.vae.factor == 1
        step: Callable[..., dict[str, Tensor]] = self.process.p_sample
        if self.request.method == "ddim":
            step, given["eta"] = self.process.ddim_sample, self.request.eta
        return step(lambda *_: out, x, t, **given)["sample"]

    def along_line(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Takes a step of rectified flow from a frame's noise level to the one below, 0 after step 0."""
        process = self.process
        level = process.at("sqrt_one_minus_alphas_cumprod", t, x)
        below = process.at("sqrt_one_minus_alphas_cumprod", (t - 1).clamp(min=0), x)
        below = below * (t > 0).to(x.dtype).view(*t.shape, *(1,) * (x.dim() - t.dim()))
        start = x - level * out
        start = start.clamp(-1, 1) if self.source.vae.factor == 1 else start
        return start + below / level * (x - start)
