"""What create_diffusion lets one choose beside the published setting, against the formulas in float64; refusals."""

import numpy as np
import pytest
import torch
from torch import Tensor

from latte_fast.diffusion import Diffusion, create_diffusion, guided, sample_timesteps
from latte_fast.diffusion.likelihood import discretized_gaussian_log_likelihood
from tests.diffusion.test_diffusion import SHAPE, Alone, Recorder, relative

STEPS = [0, 1, 600]
CLIPS = (len(STEPS), *SHAPE[1:])


def column(values: np.ndarray) -> np.ndarray:
    return values[STEPS].reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("steps", [8, 1000])
def test_cosine_schedule(steps: int) -> None:
    """Its betas multiply to a squared cosine, up to the last, which is cut."""
    tables = create_diffusion("", "squaredcos_cap_v2", diffusion_steps=steps).tables
    wave = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    assert tables.alphas_cumprod[:-1] == pytest.approx(wave[1:-1] / wave[0], rel=1e-9)
    assert tables.betas[-1] == 0.999


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.5], [[0.1]]])
def test_refuses_what_are_no_betas(betas: list) -> None:
    with pytest.raises(ValueError, match=r"betas must be one axis of values in \(0, 1\]"):
        Diffusion(np.array(betas))


@pytest.mark.parametrize("learn", [True, False])
def test_process_of_one_step(learn: bool) -> None:
    """Its variance is its beta, as there is no step 1 whose posterior step 0 could take."""
    diffusion, x = create_diffusion("1", learn_sigma=learn), torch.randn(SHAPE)
    p = diffusion.p_mean_variance(Recorder(8 if learn else 4), x, torch.tensor([0, 0]), clip_denoised=False)
    assert relative(p["variance"], np.full(SHAPE, diffusion.tables.betas[0])) < 5e-6  # exp of an fp32 log of -9
    assert torch.allclose(p["mean"], p["pred_xstart"])


@pytest.mark.parametrize("small", [True, False])
def test_variance_that_is_not_learned(small: bool) -> None:
    """The posterior's, or the schedule's with the posterior's at step 0; in logs, step 0 takes step 1's."""
    alone = Alone(list(range(1000)))
    x = torch.randn(CLIPS)
    p = create_diffusion("", learn_sigma=False, sigma_small=small).p_mean_variance(
        Recorder(4), x, torch.tensor(STEPS), clip_denoised=False
    )
    posterior = alone.beta * (1 - alone.before) / (1 - alone.bar)
    large = np.concatenate([posterior[1:2], alone.beta[1:]])
    shape = np.ones(CLIPS)
    assert relative(p["variance"], column(posterior if small else large) * shape) < 1e-6
    assert relative(p["log_variance"], column(alone.low if small else np.log(large)) * shape) < 1e-6


@pytest.mark.parametrize("name", ["p_mean_variance", "p_sample", "ddim_sample"])
@pytest.mark.parametrize("clip", [True, False])
def test_start_is_changed_then_clipped(name: str, clip: bool) -> None:
    alone, x = Alone(list(range(1000))), 1.5 * torch.randn(CLIPS).double()
    model = Recorder()
    eps = torch.from_numpy(np.split(model.answer(x.numpy(), 0), 2, axis=2)[0])
    t = torch.tensor(STEPS)
    given = {} if clip else {"clip_denoised": False}
    got = getattr(create_diffusion(""), name)(
        lambda x, t: torch.cat([eps, eps], dim=2), x, t, denoised_fn=lambda start: 0.5 * start + 0.75, **given
    )
    bar, before, beta = column(alone.bar), column(alone.before), column(alone.beta)
    start = 0.5 * (x.numpy() - np.sqrt(1 - bar) * eps.numpy()) / np.sqrt(bar) + 0.75
    assert start.min() < -1 and start.max() > 1
    start = np.clip(start, -1, 1) if clip else start
    assert relative(got["pred_xstart"], start) < 1e-5
    if name == "p_mean_variance":
        mean = (np.sqrt(before) * beta * start + np.sqrt(1 - beta) * (1 - before) * x.numpy()) / (1 - bar)
        assert relative(got["mean"], mean) < 1e-5


def losses(diffusion: Diffusion, out: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, noise = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    return diffusion.training_losses(lambda x, t: out, x, torch.tensor([0, 7]), noise=noise)


def test_whole_bound_as_the_loss() -> None:
    """It is what "vb" reports, for each step or for all T, and it trains the mean too."""
    out = torch.randn(2, 3, 8, 5, 5, requires_grad=True)
    published = create_diffusion("50")
    vb = losses(published, out)["vb"]
    every = losses(create_diffusion("50", use_kl=True), out)
    one = losses(Diffusion(published.tables.betas, loss="kl"), out)
    assert set(every) == set(one) == {"loss"}
    torch.testing.assert_close(every["loss"], 50 * vb)
    torch.testing.assert_close(one["loss"], vb)
    (grad,) = torch.autograd.grad(one["loss"].sum(), out)
    assert grad[:, :, :4].abs().max() > 0 and grad[:, :, 4:].abs().max() > 0


def test_bound_weighed_by_the_share_of_steps() -> None:
    out = torch.randn(2, 3, 8, 5, 5)
    plain, weighed = (losses(create_diffusion("50", rescale_learned_sigmas=weigh), out) for weigh in (False, True))
    assert torch.equal(weighed["mse"], plain["mse"])
    torch.testing.assert_close(weighed["vb"], 0.05 * plain["vb"])
    torch.testing.assert_close(weighed["loss"], plain["mse"] + 0.05 * plain["vb"])


def test_what_is_next_to_impossible_has_a_finite_likelihood() -> None:
    x, means = torch.tensor([0.0, -1.0, 1.0]), torch.tensor([3.0, 3.0, -3.0])
    got = discretized_gaussian_log_likelihood(x, means, torch.full((3,), -5.0))
    torch.testing.assert_close(got, torch.full((3,), 1e-12).log())


def test_steps_stay_below_the_last_however_they_are_shifted() -> None:
    assert sample_timesteps("lognormal", 5, 7, mean=40.0).tolist() == [6] * 5


def losses_of(model: Recorder, steps: int = 2, learn_sigma: bool = True) -> dict[str, Tensor]:
    t = torch.zeros(steps, dtype=torch.int64)
    return create_diffusion("", learn_sigma=learn_sigma).training_losses(model, torch.zeros(SHAPE), t)


def noised(t: list[int]) -> Tensor:
    return create_diffusion("").q_sample(torch.zeros(SHAPE), torch.tensor(t))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_diffusion("12x"), 'like "250", "ddim50"'),
        (lambda: create_diffusion(50), r'like "250", "ddim50", .* got 50$'),
        (lambda: create_diffusion("", diffusion_steps=20), "steps must be at least 21 diffusion steps .* got 20"),
        (lambda: create_diffusion("", "squaredcos_cap_v2", diffusion_steps=0), "steps must be positive, got 0"),
        (lambda: create_diffusion("", min_snr=0.0), "min_snr must be positive or None, got 0.0"),
        (lambda: create_diffusion("0"), r"like .* got '0'$"),
        (lambda: create_diffusion([10.0]), r"like .* got \[10\.0\]$"),
        (lambda: create_diffusion([10, 0]), "must take 1 to 500 steps of a section of 500, got 0"),
        (lambda: create_diffusion("ddim300"), "integer stride"),
        (lambda: create_diffusion("2000"), "1 to 1000 steps"),
        (lambda: create_diffusion("", "cubic"), "name must be one of"),
        (lambda: create_diffusion("", prediction="noise"), "prediction must be one of"),
        (lambda: create_diffusion("5").sample("euler", Recorder(), SHAPE), "method must be one of"),
        (lambda: create_diffusion("5").p_sample_loop(Recorder(4), SHAPE), "must return 2C = 8 channels, got 4"),
        (lambda: create_diffusion("5").p_sample_loop(Recorder(), SHAPE, torch.randn(1, 2)), "noise must have shape"),
        (lambda: losses_of(Recorder(4)), "must return 2C = 8 channels, got 4"),
        (lambda: losses_of(Recorder(), learn_sigma=False), "must return C = 4 channels, got 8"),
        (lambda: losses_of(Recorder(), steps=3), r"t must be \(B,\) with B = 2, or \(B, F\) with F = 3, got \(3,\)"),
        (lambda: noised([0, -1]), r"t must be \(B,\) of the process's 1000 steps, in \[0, 1000\), got \[0, -1\]"),
        (lambda: noised([1000, 0]), r"in \[0, 1000\), got \[1000, 0\]"),
        (lambda: guided(Recorder(), 1.0, "both"), "order must be"),
        (lambda: sample_timesteps("normal", 2, 3), "kind must be"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
