"""The diffusion process: noising, the model's mean and variance, and the training loss. Takes any model callable."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latte_fast.diffusion.likelihood import discretized_gaussian_log_likelihood, normal_kl
from latte_fast.diffusion.schedule import StraightTables, Tables

Model = Callable[..., Tensor]
PREDICTIONS = ("epsilon", "start_x", "v", "flow")
VARIANCES = ("learned_range", "fixed_large", "fixed_small")
LOSSES = ("mse", "rescaled_mse", "kl", "rescaled_kl")


class Process:
    """A diffusion process over (B, F, C, H, W), or any layout whose channels are axis 2.

    Time steps t are (B,), or (B, F): a step for each frame.

    Args:
        betas: noise variances of the process's steps, (T,); for rectified flow its noise levels.
        timestep_map: original step of each step, which is what the model is given; by default the step itself.
        prediction: meaning of the model's first C channels: "epsilon", "start_x", "v", or for rectified flow "flow",
            noise - x_0.
        variance: "learned_range" reads the model's last C channels as a fraction between the posterior's and the
            schedule's log variance; "fixed_small" is the posterior's, "fixed_large" the schedule's.
        loss: "mse" adds the bound's term with the mean detached; the rescaled forms multiply the bound by T / 1000
            (mse) or T (kl).
        min_snr: gamma of the min-SNR weighting of the mean squared error, or None.
    """

    def __init__(
        self,
        betas: np.ndarray,
        *,
        timestep_map: list[int] | None = None,
        prediction: str = "epsilon",
        variance: str = "learned_range",
        loss: str = "mse",
        min_snr: float | None = None,
    ):
        for name, value, known in (("prediction", prediction, PREDICTIONS), ("variance", variance, VARIANCES),
                                   ("loss", loss, LOSSES)):  # fmt: skip
            if value not in known:
                raise ValueError(f"Process: {name} must be one of {', '.join(known)}, got {value!r}")
        if min_snr is not None and min_snr <= 0:
            raise ValueError(f"Process: min_snr must be positive or None, got {min_snr}")
        flow = prediction == "flow"
        if flow and (variance == "learned_range" or loss != "mse" or min_snr is not None):
            raise ValueError("Process: rectified flow has no learned variance, and its loss is the plain mse")
        self.tables: Tables = StraightTables(betas) if flow else Tables(betas)
        self.num_timesteps = len(betas)
        self.timestep_map = list(range(len(betas))) if timestep_map is None else list(timestep_map)
        self.prediction, self.variance, self.loss, self.min_snr = prediction, variance, loss, min_snr
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Returns the table `name` at steps t, fp32, to broadcast over `like`; copies a table to a device once."""
        key = (name, t.device)
        if key not in self._on_device:
            if name == "timestep_map":
                self._on_device[key] = torch.tensor(self.timestep_map, device=t.device)
            else:
                # rounded on the CPU: some devices have no float64
                self._on_device[key] = torch.from_numpy(getattr(self.tables, name)).float().to(t.device)
        try:
            # unlike [t], index_select does not take -1 for the last step
            values = self._on_device[key].index_select(0, t.flatten())
        except IndexError:
            steps = f"{self.num_timesteps} steps, in [0, {self.num_timesteps})"
            raise ValueError(f"Process: t must be (B,) of the process's {steps}, got {t.tolist()}") from None
        return values.view(*t.shape, *(1,) * (like.dim() - t.dim()))

    def model_time(self, t: Tensor) -> Tensor:
        """Returns the original steps, which the model was trained with."""
        return self.at("timestep_map", t, t)

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns mean, variance and log variance of q(x_t | x_0)."""
        log_variance = self.at("log_one_minus_alphas_cumprod", t, x_start)
        return self.at("sqrt_alphas_cumprod", t, x_start) * x_start, log_variance.exp(), log_variance

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draws x_t given x_0."""
        noise = torch.randn_like(x_start) if noise is None else noise
        signal = self.at("sqrt_alphas_cumprod", t, x_start)
        return signal * x_start + self.at("sqrt_one_minus_alphas_cumprod", t, x_start) * noise

    def q_posterior_mean_variance(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0)."""
        mean = self.at("posterior_mean_coef1", t, x_t) * x_start + self.at("posterior_mean_coef2", t, x_t) * x_t
        variance = self.at("posterior_variance", t, x_t)
        return mean, variance, self.at("posterior_log_variance_clipped", t, x_t)

    def predict_start(self, out: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Computes x_0 from the model's prediction."""
        if self.prediction == "start_x":
            return out
        if self.prediction == "flow":
            return x_t - self.at("sqrt_one_minus_alphas_cumprod", t, x_t) * out
        if self.prediction == "v":
            signal, noise = self.at("sqrt_alphas_cumprod", t, x_t), self.at("sqrt_one_minus_alphas_cumprod", t, x_t)
            return signal * x_t - noise * out
        return self.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - self.at("sqrt_recipm1_alphas_cumprod", t, x_t) * out

    def predict_noise(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Computes the noise that takes x_0 to x_t."""
        recip = self.at("sqrt_recip_alphas_cumprod", t, x_t)
        return (recip * x_t - x_start) / self.at("sqrt_recipm1_alphas_cumprod", t, x_t)

    def p_mean_variance(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Calls the model; returns mean, variance, log_variance of p(x_{t-1} | x_t), and pred_xstart."""
        out = model(x, self.model_time(t), **(model_kwargs or {}))
        return self.mean_variance_of(out, x, t, clip_denoised, denoised_fn)

    def mean_variance_of(
        self,
        out: Tensor,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Computes p_mean_variance from the model's output."""
        out, fraction = self._halves(out, x)
        if fraction is not None:
            low, high = self.at("posterior_log_variance_clipped", t, x), self.at("log_betas", t, x)
            share = (fraction + 1) / 2
            log_variance = share * high + (1 - share) * low
            variance = log_variance.exp()
        else:
            small = self.variance == "fixed_small"
            name = "posterior_variance" if small else "fixed_large_variance"
            log_name = "posterior_log_variance_clipped" if small else "fixed_large_log_variance"
            variance = self.at(name, t, x).expand_as(x)
            log_variance = self.at(log_name, t, x).expand_as(x)
        start = self.predict_start(out, x, t)
        if denoised_fn is not None:
            start = denoised_fn(start)
        if clip_denoised:
            start = start.clamp(-1, 1)
        mean = self.q_posterior_mean_variance(start, x, t)[0]
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": start}

    def _halves(self, out: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Splits the model's output into the prediction and, where it is learned, the variance."""
        channels, learned = x.shape[2], self.variance == "learned_range"
        wanted, name = (2 * channels, "2C") if learned else (channels, "C")
        if out.shape[2] != wanted:
            raise ValueError(f"Process: the model must return {name} = {wanted} channels, got {out.shape[2]}")
        return (out[:, :, :channels], out[:, :, channels:]) if learned else (out, None)

    def bound_term(self, out: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor, clip_denoised: bool = False) -> Tensor:
        """Returns bits per dimension (B,): KL(q || p), or at step 0 the decoder's negative log likelihood."""
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        p = self.mean_variance_of(out, x_t, t, clip_denoised)
        kl = _mean(normal_kl(true_mean, true_log_variance, p["mean"], p["log_variance"]), t) / math.log(2)
        likelihood = discretized_gaussian_log_likelihood(x_start, p["mean"], 0.5 * p["log_variance"])
        return _mean(torch.where(t == 0, -_mean(likelihood, t) / math.log(2), kl))

    def training_losses(
        self,
        model: Model,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns (B,) each: "loss", and for the mse losses "mse" and, with a learned variance, "vb"."""
        if t.shape not in (x_start.shape[:1], x_start.shape[:2]):
            batch, frames = x_start.shape[:2]
            rule = f"(B,) with B = {batch}, or (B, F) with F = {frames}"
            raise ValueError(f"training_losses: t must be {rule}, got {tuple(t.shape)}")
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        out = model(x_t, self.model_time(t), **(model_kwargs or {}))
        if self.loss.endswith("kl"):
            loss = self.bound_term(out, x_start, x_t, t)
            return {"loss": loss * self.num_timesteps if self.loss == "rescaled_kl" else loss}
        terms: dict[str, Tensor] = {}
        prediction, fraction = self._halves(out, x_start)
        if fraction is not None:
            # the bound trains the variance alone
            terms["vb"] = self.bound_term(torch.cat([prediction.detach(), fraction], dim=2), x_start, x_t, t)
            if self.loss == "rescaled_mse":
                terms["vb"] = terms["vb"] * (self.num_timesteps / 1000)
        target = self._target(x_start, noise, t)
        terms["mse"] = _mean(_mean((target - prediction) ** 2, t) * self._snr_weight(t))
        terms["loss"] = terms["mse"] + terms["vb"] if "vb" in terms else terms["mse"]
        return terms

    def _target(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "start_x":
            return x_start
        if self.prediction == "flow":
            return noise - x_start
        signal, sigma = self.at("sqrt_alphas_cumprod", t, noise), self.at("sqrt_one_minus_alphas_cumprod", t, noise)
        return signal * noise - sigma * x_start

    def _snr_weight(self, t: Tensor) -> Tensor | float:
        if self.min_snr is None:
            return 1.0
        snr = self.at("snr", t, t)
        capped = snr.clamp(max=self.min_snr)
        return {"epsilon": capped / snr, "start_x": capped, "v": capped / (snr + 1)}[self.prediction]


def _mean(x: Tensor, t: Tensor | None = None) -> Tensor:
    """Averages over every axis but the batch, or but the axes that time steps t have."""
    kept = 1 if t is None else t.dim()
    return x if x.dim() == kept else x.flatten(kept).mean(kept)
