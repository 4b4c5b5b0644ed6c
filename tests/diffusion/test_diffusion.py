"""The diffusion process against an independent float64 computation, and against published landmarks."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latte_fast.diffusion import METHODS, create_diffusion, guided, sample_timesteps
from latte_fast.testing import assert_no_worse_than_torch
from tests.helpers.counting import Count

SHAPE = (2, 3, 4, 5, 5)


class Recorder:
    """A model with a fixed answer a step, which notes the original steps it is asked about."""

    def __init__(self, channels: int = 8):
        self.asked: list[int] = []
        self.channels = channels

    def answer(self, x: np.ndarray, t: int) -> np.ndarray:
        eps = np.tanh(0.7 * x + 0.1 * math.sin(t))
        return np.concatenate([eps, np.cos(x + t)], axis=2)[:, :, : self.channels]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.asked.append(int(t[0]))
        return torch.from_numpy(self.answer(x.double().numpy(), int(t[0]))).to(x.dtype)


class Alone:
    """The published formulas, written out again in float64 numpy."""

    def __init__(self, kept: list[int]):
        betas = np.linspace(1e-4, 0.02, 1000)
        bars = np.array([np.prod(1 - betas[: k + 1]) for k in kept])
        self.kept, self.bar = kept, bars
        self.before = np.concatenate([[1.0], bars[:-1]])
        self.beta = 1 - bars / self.before
        posterior = self.beta * (1 - self.before) / (1 - bars)
        self.low = np.log(np.concatenate([posterior[1:2], posterior[1:]]))
        self.high = np.log(self.beta)

    def start(self, eps: np.ndarray, x: np.ndarray, i: int) -> np.ndarray:
        return (x - np.sqrt(1 - self.bar[i]) * eps) / np.sqrt(self.bar[i])

    def mean(self, start: np.ndarray, x: np.ndarray, i: int) -> np.ndarray:
        a = np.sqrt(self.before[i]) * self.beta[i] / (1 - self.bar[i])
        b = np.sqrt(1 - self.beta[i]) * (1 - self.before[i]) / (1 - self.bar[i])
        return a * start + b * x

    def log_variance(self, fraction: np.ndarray, i: int) -> np.ndarray:
        share = (fraction + 1) / 2
        return share * self.high[i] + (1 - share) * self.low[i]

    def ddpm(self, x: np.ndarray, noises: list[np.ndarray]) -> np.ndarray:
        model = Recorder()
        for i, noise in zip(range(len(self.kept) - 1, -1, -1), noises, strict=True):
            eps, fraction = np.split(model.answer(x, self.kept[i]), 2, axis=2)
            mean = self.mean(self.start(eps, x, i), x, i)
            x = mean + (i > 0) * np.exp(0.5 * self.log_variance(fraction, i)) * noise
        return x

    def ddim(self, x: np.ndarray) -> np.ndarray:
        model = Recorder()
        for i in range(len(self.kept) - 1, -1, -1):
            eps = np.split(model.answer(x, self.kept[i]), 2, axis=2)[0]
            x = np.sqrt(self.before[i]) * self.start(eps, x, i) + np.sqrt(1 - self.before[i]) * eps
        return x


def relative(got: Tensor, exact: np.ndarray) -> float:
    return float(np.abs(got.double().numpy() - exact).max() / np.abs(exact).max())


def test_ten_steps_of_ddpm() -> None:
    diffusion = create_diffusion("10")
    x = torch.randn(SHAPE, dtype=torch.float64)
    torch.manual_seed(5)
    noises = [torch.randn_like(x).numpy() for _ in range(10)]
    torch.manual_seed(5)
    model = Recorder()
    got = diffusion.p_sample_loop(model, SHAPE, x, clip_denoised=False)
    exact = Alone(diffusion.timestep_map).ddpm(x.numpy(), noises)
    assert relative(got, exact) <= 1e-5  # upstream's tables are applied as fp32
    assert model.asked == diffusion.timestep_map[::-1]


def test_ten_steps_of_ddim() -> None:
    diffusion = create_diffusion("ddim10")
    x = torch.randn(SHAPE, dtype=torch.float64)
    got = diffusion.ddim_sample_loop(Recorder(), SHAPE, x, clip_denoised=False)
    assert relative(got, Alone(diffusion.timestep_map).ddim(x.numpy())) <= 1e-5


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [2, 3, 6, 8, 9, 50])
def test_ddim_as_noisy_as_ddpm(schedule: str, steps: int) -> None:
    """eta = 1 at every step of a few: the posterior's own variance, and nothing below 0 under a root."""
    diffusion = create_diffusion(str(steps), schedule)
    tables = diffusion.tables
    shape = (steps, 1, 4, 2, 2)
    x, noise, out = torch.randn(shape), torch.randn(shape), torch.randn(steps, 1, 8, 2, 2)
    got = diffusion.ddim_sample(lambda x, t: out, x, torch.arange(steps), False, eta=1.0, draw=lambda x: noise)

    bars, before, variance = (
        values.reshape(-1, 1, 1, 1, 1)
        for values in (tables.alphas_cumprod, tables.alphas_cumprod_prev, tables.posterior_variance)
    )
    eps = out[:, :, :4].double().numpy()
    start = (x.double().numpy() - np.sqrt(1 - bars) * eps) / np.sqrt(bars)
    left = np.sqrt(np.maximum(1 - before - variance, 0))
    assert (
        relative(got["sample"], np.sqrt(before) * start + left * eps + np.sqrt(variance) * noise.double().numpy())
        < 2e-6
    )


@pytest.mark.parametrize(("steps", "bound"), [(20, 0.06), (50, 0.005), (200, 0.0015)])
def test_dpm_solver_follows_the_exact_flow(steps: int, bound: float) -> None:
    """Gaussian data N(0, s^2) has a known score; its probability flow maps x_T to x_0 by one known factor."""
    s2, diffusion = 0.25, create_diffusion(str(steps))
    x = torch.randn(SHAPE, dtype=torch.float64)
    bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))

    def model(x: Tensor, t: Tensor) -> Tensor:
        bar = bars[int(t[0])]
        eps = math.sqrt(1 - bar) * x / (bar * s2 + 1 - bar)
        return torch.cat([eps, torch.zeros_like(eps)], dim=2)

    # x / sqrt(bar s^2 + 1 - bar) is constant along the flow; what is returned is the posterior mean at the last step
    end = x * math.sqrt((bars[0] * s2 + 1 - bars[0]) / (bars[999] * s2 + 1 - bars[999]))
    exact = (end * math.sqrt(bars[0]) * s2 / (bars[0] * s2 + 1 - bars[0])).numpy()
    errors = {
        method: relative(diffusion.sample(method, model, SHAPE, noise=x, clip_denoised=False), exact)
        for method in ("ddim", "dpm++")
    }
    assert errors["dpm++"] <= bound
    assert errors["dpm++"] <= errors["ddim"] / 2


def test_landmarks() -> None:
    assert create_diffusion("").tables.alphas_cumprod[999] == pytest.approx(4.0358e-5, rel=1e-5)
    kept = create_diffusion("250").timestep_map
    assert (kept[:4], kept[-2:], len(kept)) == ([0, 4, 8, 12], [995, 999], 250)
    assert create_diffusion("50").timestep_map[:4] == [0, 20, 41, 61]
    kept = create_diffusion("ddim50").timestep_map
    assert (kept[:2], kept[-1], len(kept)) == ([0, 20], 980, 50)
    assert len(create_diffusion("10,15,20").timestep_map) == 45
    assert create_diffusion([10, 15, 20]).timestep_map == create_diffusion("10,15,20").timestep_map
    assert create_diffusion("1,500").timestep_map == [0, *range(500, 1000)]
    assert all(create_diffusion(whole).timestep_map == list(range(1000)) for whole in ("", None, "1000", "ddim1000"))


@pytest.mark.parametrize(("t", "vb", "slack"), [(0, 1.50714, 5e-6), (1, 0.04931, 5e-6), (500, 9e-8, 1e-8)])
def test_bound_of_a_perfect_model(t: int, vb: float, slack: float) -> None:
    noise = torch.randn(SHAPE)
    terms = create_diffusion("").training_losses(
        lambda x, t: torch.cat([noise, torch.zeros_like(noise)], dim=2),
        torch.zeros(SHAPE),
        torch.tensor([t, t]),
        noise=noise,
    )
    assert terms["vb"].tolist() == pytest.approx([vb, vb], abs=slack)
    assert terms["mse"].abs().max() == 0
    assert set(terms) == {"loss", "mse", "vb"}


@pytest.mark.parametrize("t", [0, 1, 37, 999])
def test_loss_alone(t: int) -> None:
    rng = np.random.default_rng(t)
    x0, noise = rng.normal(size=SHAPE) * 0.5, rng.normal(size=SHAPE)
    alone = Alone(list(range(1000)))
    x = np.sqrt(alone.bar[t]) * x0 + np.sqrt(1 - alone.bar[t]) * noise
    eps, fraction = np.split(Recorder().answer(x, t), 2, axis=2)
    mean, true = alone.mean(alone.start(eps, x, t), x, t), alone.mean(x0, x, t)
    logvar, low = alone.log_variance(fraction, t), alone.low[t]
    if t:
        bound = 0.5 * (logvar - low + np.exp(low - logvar) - 1 + (true - mean) ** 2 * np.exp(-logvar))
    else:

        def cdf(z: np.ndarray) -> np.ndarray:
            return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

        scale = np.exp(-0.5 * logvar)
        upper, lower = cdf((x0 - mean + 1 / 255) * scale), cdf((x0 - mean - 1 / 255) * scale)
        middle = np.log(np.maximum(upper - lower, 1e-12))
        ends = np.where(x0 < -0.999, np.log(np.maximum(upper, 1e-12)), np.log(np.maximum(1 - lower, 1e-12)))
        bound = -np.where(np.abs(x0) > 0.999, ends, middle)
    vb = bound.mean(axis=(1, 2, 3, 4)) / np.log(2)
    mse = ((noise - eps) ** 2).mean(axis=(1, 2, 3, 4))
    steps = torch.tensor([t, t])
    terms = create_diffusion("").training_losses(Recorder(), torch.from_numpy(x0), steps, noise=torch.from_numpy(noise))
    assert terms["mse"].numpy() == pytest.approx(mse, rel=1e-5)
    assert terms["vb"].numpy() == pytest.approx(vb, rel=2e-4)  # fp32 tables in exp(-log variance) at small t
    assert terms["loss"].numpy() == pytest.approx(mse + vb, rel=2e-4)


def test_bound_trains_the_variance_alone() -> None:
    out = torch.randn(2, 3, 8, 5, 5, requires_grad=True)
    terms = create_diffusion("").training_losses(lambda x, t: out, torch.randn(SHAPE), torch.tensor([3, 700]))
    (grad,) = torch.autograd.grad(terms["vb"].sum(), out)
    assert grad[:, :, :4].abs().max() == 0
    assert grad[:, :, 4:].abs().max() > 0


@pytest.mark.parametrize("prediction", ["epsilon", "start_x", "v"])
def test_every_prediction_recovers_the_start(prediction: str) -> None:
    diffusion = create_diffusion("", prediction=prediction, learn_sigma=False)
    x0, noise, t = torch.randn(SHAPE).double(), torch.randn(SHAPE).double(), torch.tensor([3, 400])
    target = diffusion._target(x0, noise, t)
    p = diffusion.p_mean_variance(lambda x, t: target, diffusion.q_sample(x0, t, noise), t, clip_denoised=False)
    assert (p["pred_xstart"] - x0).abs().max() < 1e-5
    assert set(p) == {"mean", "variance", "log_variance", "pred_xstart"}
    weighted = create_diffusion("", prediction=prediction, learn_sigma=False, min_snr=5.0)
    terms = weighted.training_losses(lambda x, t: torch.zeros_like(x), x0, t, noise=noise)
    plain = diffusion.training_losses(lambda x, t: torch.zeros_like(x), x0, t, noise=noise)
    snr = weighted.tables.snr[[3, 400]]
    expected = {"epsilon": np.minimum(snr, 5) / snr, "start_x": np.minimum(snr, 5), "v": np.minimum(snr, 5) / (snr + 1)}
    assert (terms["loss"] / plain["loss"]).numpy() == pytest.approx(expected[prediction], rel=1e-5)


def test_respacing_keeps_the_original_alphas() -> None:
    whole, some = create_diffusion(""), create_diffusion("17,5")
    assert some.tables.alphas_cumprod == pytest.approx(whole.tables.alphas_cumprod[some.timestep_map], rel=1e-12)


@pytest.mark.parametrize("order", ["cond_uncond", "uncond_cond"])
def test_guidance(order: str) -> None:
    x, t = torch.randn(SHAPE), torch.tensor([1, 2])

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, x], dim=2) * y.view(-1, 1, 1, 1, 1)

    labels = {"cond_uncond": [3.0, 3.0, 1.0, 1.0], "uncond_cond": [1.0, 1.0, 3.0, 3.0]}[order]
    out = guided(model, 4.0, order)(x, t, y=torch.tensor(labels))
    assert torch.allclose(out[:, :, :4], x * (1 + 4 * 2))
    assert torch.allclose(out[:, :, 4:], x * 3)  # the variance is not guided


@pytest.mark.parametrize("method", METHODS)
def test_loops_do_not_read_back(method: str) -> None:
    """On the meta device any read of a value would raise: nothing in a loop waits for the device."""
    diffusion = create_diffusion("5")
    noise = torch.empty(SHAPE, device="meta")
    out = diffusion.sample(method, lambda x, t: torch.cat([x, x], dim=2), SHAPE, noise=noise)
    assert out.shape == SHAPE and out.device.type == "meta"


def test_tables_are_converted_once() -> None:
    """A step casts and copies nothing but what its first made."""
    diffusion, x, t = create_diffusion("5"), torch.empty(SHAPE, device="meta"), torch.tensor([0, 1], device="meta")
    with Count() as count:
        for _ in range(2):
            before = count.ran["_to_copy"]
            diffusion.training_losses(lambda x, t: torch.cat([x, x], dim=2), x, t)
    assert count.ran["_to_copy"] == before > 0


@pytest.mark.parametrize("kind", ["uniform", "lognormal"])
def test_timesteps(kind: str) -> None:
    t = sample_timesteps(kind, 4000, 1000, generator=torch.Generator().manual_seed(0))
    assert t.min() >= 0 and t.max() < 1000 and t.dtype == torch.int64
    assert abs(t.double().mean() - 500) < 20
    assert t.double().std() < 240 if kind == "lognormal" else t.double().std() > 270


@pytest.mark.parametrize("name", ["p_sample", "ddim_sample"])
def test_an_update_is_one_compiled_region(name: str) -> None:
    """Guidance, mean and noise: one graph without a break, the eager numbers, no recompilation from step to step."""
    from torch._dynamo.utils import counters

    x, t = torch.randn(2, 3, 4, 8, 8), torch.tensor([0, 37])
    out = torch.randn(4, 3, 8, 8, 8)
    noise = torch.randn_like(x)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return out

    def step(diffusion: Any) -> dict:
        more = {"eta": 0.7} if name == "ddim_sample" else {}
        return getattr(diffusion, name)(guided(model, 3.0), x, t, False, draw=lambda x: noise, **more)

    eager = step(create_diffusion("50"))
    single, (x, out, noise) = (x, out, noise), (x.double(), out.double(), noise.double())
    exact = step(create_diffusion("50"))
    x, out, noise = single
    torch._dynamo.reset()
    counters.clear()
    compiled = create_diffusion("50").compile_updates()
    got = step(compiled)
    assert counters["stats"]["unique_graphs"] == 1
    for key, same in eager.items():
        assert_no_worse_than_torch(key, got[key], same, exact[key])
    with torch._dynamo.config.patch(error_on_recompile=True):
        t += 1
        step(compiled)
