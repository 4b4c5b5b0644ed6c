"""Sampling from a process: DDPM, DDIM and DPM-Solver++(2M), each loop without a host synchronisation."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latte_fast.diffusion.guidance import Guided, guided_output
from latte_fast.diffusion.process import Model, Process

METHODS = ("ddpm", "ddim", "dpm++")


class Diffusion(Process):
    """A Process with upstream's sampling methods."""

    # updates by name, if they were compiled; a process that kept its own methods would wait for the garbage collector
    _compiled: dict[str, Callable[..., dict[str, Tensor]]] | None = None

    def p_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        draw: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> dict[str, Tensor]:
        """Takes one DDPM step; returns "sample" x_{t-1} and "pred_xstart". `draw` makes noise like x."""
        out, guide = self._model_output(model, x, t, model_kwargs)
        return self._update("ddpm", out, x, t, draw(x), guide, clip_denoised, denoised_fn)

    def ddim_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
        draw: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> dict[str, Tensor]:
        """Takes one DDIM step, which ignores the learned variance. `draw` makes noise like x."""
        out, guide = self._model_output(model, x, t, model_kwargs)
        return self._update("ddim", out, x, t, draw(x), guide, clip_denoised, denoised_fn, eta)

    def compile_updates(self, **options: Any) -> "Diffusion":
        """Compiles what follows the model in a DDPM or DDIM step (guidance, mean, noise) into one region each.

        The first step pays for the compilation, so this is for long or many runs; options are torch.compile's.
        """
        names = ("ddpm", "ddim")
        self._compiled = {name: torch.compile(getattr(self, f"_{name}"), fullgraph=True, **options) for name in names}
        return self

    def _model_output(
        self, model: Model, x: Tensor, t: Tensor, model_kwargs: dict[str, Any] | None
    ) -> tuple[Tensor, Guided | None]:
        """Calls the model; returns its output and the guidance that is still to be applied."""
        kwargs, times = model_kwargs or {}, self.model_time(t)
        if isinstance(model, Guided):
            return model.both(x, times, **kwargs), model
        return model(x, times, **kwargs), None

    def _update(self, name: str, out: Tensor, x: Tensor, t: Tensor, *args: Any) -> dict[str, Tensor]:
        if self._compiled is None:
            plain: Callable[..., dict[str, Tensor]] = self._ddpm if name == "ddpm" else self._ddim
            return plain(out, x, t, *args)
        # copies the tables to the device before anything is traced
        for table in self.tables.names():
            self.at(table, t, x)
        return self._compiled[name](out, x, t, *args)

    def _ddpm(
        self,
        out: Tensor,
        x: Tensor,
        t: Tensor,
        noise: Tensor,
        guide: Guided | None,
        clip_denoised: bool,
        denoised_fn: Callable[[Tensor], Tensor] | None,
    ) -> dict[str, Tensor]:
        p = self.mean_variance_of(guided_output(guide, out, x), x, t, clip_denoised, denoised_fn)
        moving = (t != 0).float().view(*t.shape, *(1,) * (x.dim() - t.dim()))
        sample = p["mean"] + moving * torch.exp(0.5 * p["log_variance"]) * noise
        return {"sample": sample, "pred_xstart": p["pred_xstart"]}

    def _ddim(
        self,
        out: Tensor,
        x: Tensor,
        t: Tensor,
        noise: Tensor,
        guide: Guided | None,
        clip_denoised: bool,
        denoised_fn: Callable[[Tensor], Tensor] | None,
        eta: float,
    ) -> dict[str, Tensor]:
        start = self.mean_variance_of(guided_output(guide, out, x), x, t, clip_denoised, denoised_fn)["pred_xstart"]
        eps = self.predict_noise(start, x, t)
        before, level = self.at("alphas_cumprod_prev", t, x), self.at("one_minus_alphas_cumprod_prev", t, x)
        # level * (1 - drawn) is upstream's 1 - before - sigma^2, which falls below 0 in fp32 at few steps and eta 1
        drawn = eta**2 * self.at("posterior_share", t, x)
        sigma = torch.sqrt(level * drawn)
        mean = start * torch.sqrt(before) + torch.sqrt(level * (1 - drawn)) * eps
        moving = (t != 0).float().view(*t.shape, *(1,) * (x.dim() - t.dim()))
        return {"sample": mean + moving * sigma * noise, "pred_xstart": start}

    def p_sample_loop(self, model: Model, shape: tuple[int, ...], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Samples x_0 by DDPM; takes p_sample's keywords, `device` and `progress`."""
        return _last(self.p_sample_loop_progressive(model, shape, noise, **kwargs))

    def ddim_sample_loop(
        self, model: Model, shape: tuple[int, ...], noise: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Samples x_0 by DDIM; takes ddim_sample's keywords, `device` and `progress`."""
        return _last(self.ddim_sample_loop_progressive(model, shape, noise, **kwargs))

    def p_sample_loop_progressive(
        self, model: Model, shape: tuple[int, ...], noise: Tensor | None = None, **kwargs: Any
    ) -> Iterator[dict[str, Tensor]]:
        return self._steps(self.p_sample, model, shape, noise, **kwargs)

    def ddim_sample_loop_progressive(
        self, model: Model, shape: tuple[int, ...], noise: Tensor | None = None, **kwargs: Any
    ) -> Iterator[dict[str, Tensor]]:
        return self._steps(self.ddim_sample, model, shape, noise, **kwargs)

    def dpm_solver_sample_loop(
        self,
        model: Model,
        shape: tuple[int, ...],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Samples x_0 by DPM-Solver++(2M): second order in x_0 predictions, first order in the first and last step."""
        x, times = self._begin(model, shape, noise, device)
        before: Tensor | None = None
        bars = torch.as_tensor(self.tables.alphas_cumprod)
        # half the log of the signal-to-noise ratio, on the CPU, so that no coefficient waits for the GPU
        lambdas = 0.5 * torch.log(bars / (1 - bars))
        for i in tqdm(range(self.num_timesteps - 1, -1, -1), disable=not progress):
            with torch.no_grad():
                p = self.p_mean_variance(model, x, times[i].expand(shape[0]), clip_denoised, denoised_fn, model_kwargs)
            start = p["pred_xstart"]
            if i == 0:
                return start
            h = lambdas[i - 1] - lambdas[i]
            target = start
            if before is not None and i > 1:
                ratio = float((lambdas[i] - lambdas[i + 1]) / h)
                target = (1 + 0.5 / ratio) * start - 0.5 / ratio * before
            keep = float(torch.sqrt((1 - bars[i - 1]) / (1 - bars[i])))
            x = keep * x - float(torch.sqrt(bars[i - 1]) * torch.expm1(-h)) * target
            before = start
        raise AssertionError("a process has at least one step")

    def sample(self, method: str, model: Model, shape: tuple[int, ...], **kwargs: Any) -> Tensor:
        """Samples x_0 by one of METHODS."""
        loops: dict[str, Callable[..., Tensor]] = {
            "ddpm": self.p_sample_loop,
            "ddim": self.ddim_sample_loop,
            "dpm++": self.dpm_solver_sample_loop,
        }
        if method not in loops:
            raise ValueError(f"sample: method must be one of {', '.join(METHODS)}, got {method!r}")
        return loops[method](model, shape, **kwargs)

    def _begin(
        self, model: Model, shape: tuple[int, ...], noise: Tensor | None, device: torch.device | str | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the initial noise, and all steps as a tensor on its device."""
        if noise is not None and tuple(noise.shape) != tuple(shape):
            raise ValueError(f"sample: noise must have shape {tuple(shape)}, got {tuple(noise.shape)}")
        if device is None:
            device = noise.device if noise is not None else _device_of(model)
        x = torch.randn(*shape, device=device) if noise is None else noise.to(device)
        return x, torch.arange(self.num_timesteps, device=device)

    def _steps(
        self,
        step: Callable[..., dict[str, Tensor]],
        model: Model,
        shape: tuple[int, ...],
        noise: Tensor | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> Iterator[dict[str, Tensor]]:
        x, times = self._begin(model, shape, noise, device)
        for i in tqdm(range(self.num_timesteps - 1, -1, -1), disable=not progress):
            with torch.no_grad():
                out = step(model, x, times[i].expand(shape[0]), **kwargs)
            yield out
            x = out["sample"]


def _device_of(model: Model) -> torch.device:
    """Returns the device of the parameters of a module or a module's method; the CPU for other callables."""
    owner = model.model if isinstance(model, Guided) else model
    owner = getattr(owner, "__self__", owner)
    first = next(owner.parameters(), None) if isinstance(owner, torch.nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def _last(steps: Iterator[dict[str, Tensor]]) -> Tensor:
    out: dict[str, Tensor] = {}
    for out in steps:  # noqa: B007  only the last is wanted
        pass
    return out["sample"]
