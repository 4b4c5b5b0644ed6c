"""The process with a step a frame: each frame is noised, judged and denoised as a clip of its own would be."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast.diffusion import Diffusion, create_diffusion, guided
from latte_fast.sampling.windows import windowed
from latte_fast.testing import relative_error

SHAPE = (2, 3, 4, 5, 5)


def drawn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(x: Tensor, t: Tensor) -> Tensor:
    """A model without any exchange between frames, which tells their steps apart."""
    t = t.view(*t.shape, *(1,) * (x.dim() - t.dim())).to(x.dtype)
    return torch.cat([torch.tanh(0.7 * x + 0.1 * torch.sin(t)), torch.cos(x + t)], dim=2)


def mean_model(x: Tensor, t: Tensor) -> Tensor:
    return model(x, t)[:, :, : x.shape[2]]


# the first and last step among them
STEPS = torch.tensor([[0, 4, 9], [9, 1, 0]])


def frame_by_frame(diffusion: Diffusion, name: str, *args: Any) -> Tensor:
    """Calls a method on every frame as a batch of clips of one frame, at its own step."""
    given = [a.flatten(0, 1)[:, None] if isinstance(a, Tensor) and a.shape == SHAPE else a for a in args]
    given = [STEPS.flatten() if a is STEPS else a for a in given]
    out = getattr(diffusion, name)(*given)
    return out.squeeze(1).unflatten(0, SHAPE[:2])


def test_noising_and_posterior_are_of_each_frame() -> None:
    diffusion = create_diffusion("10")
    for name, args in (("q_sample", (drawn(0), STEPS, drawn(1))), ("predict_start", (drawn(0), drawn(1), STEPS)),
                       ("predict_noise", (drawn(0), drawn(1), STEPS))):  # fmt: skip
        assert torch.equal(getattr(diffusion, name)(*args), frame_by_frame(diffusion, name, *args))
    mean, variance, log_variance = diffusion.q_posterior_mean_variance(drawn(0), drawn(1), STEPS)
    assert mean.shape == SHAPE and variance.shape == log_variance.shape == (2, 3, 1, 1, 1)
    assert torch.equal(diffusion.model_time(STEPS), diffusion.model_time(STEPS.flatten()).view(2, 3))


@pytest.mark.parametrize("method", ["p_sample", "ddim_sample"])
def test_a_step_of_a_sampler_is_of_each_frame(method: str) -> None:
    diffusion, noise = create_diffusion("10"), drawn(2)
    more = {"eta": 0.7} if method == "ddim_sample" else {}
    for net in (model, guided(lambda x, t: model(x, t) * torch.arange(1, len(x) + 1).view(-1, 1, 1, 1, 1), 3.0)):
        got = getattr(diffusion, method)(net, drawn(0), STEPS, draw=lambda x: noise, **more)["sample"]
        for i in range(2):
            for f in range(3):
                # the whole batch at this frame's step, of which this frame is taken
                t = STEPS[i, f].expand(2)
                want = getattr(diffusion, method)(net, drawn(0), t, draw=lambda x: noise, **more)["sample"]
                assert torch.equal(got[i, f], want[i, f])


LOSSES: list[dict[str, Any]] = [
    {},
    {"use_kl": True},
    {"rescale_learned_sigmas": True},
    {"learn_sigma": False, "min_snr": 5.0},
    {"learn_sigma": False, "prediction": "v", "min_snr": 5.0},
    {"learn_sigma": False, "prediction": "flow"},
]


@pytest.mark.parametrize("how", LOSSES, ids=lambda how: "-".join(map(str, how.values())) or "mse")
def test_losses_are_the_mean_of_the_frames(how: dict[str, Any]) -> None:
    diffusion = create_diffusion("10", **how)
    net = model if how.get("learn_sigma", True) else mean_model
    x = drawn(0).clamp(-1, 1)
    got = diffusion.training_losses(net, x, STEPS, noise=drawn(1))
    flat = diffusion.training_losses(
        net, x.flatten(0, 1)[:, None], STEPS.flatten(), noise=drawn(1).flatten(0, 1)[:, None]
    )
    for name, value in got.items():
        assert value.shape == (2,)
        assert relative_error(value, flat[name].view(2, 3).mean(1)) <= 1e-12
    same = torch.tensor([3, 0])
    one = diffusion.training_losses(net, x, same, noise=drawn(1))
    many = diffusion.training_losses(net, x, same[:, None].expand(2, 3), noise=drawn(1))
    for name, value in one.items():
        assert relative_error(many[name], value) <= 3e-6


def test_windows_take_the_steps_of_their_frames() -> None:
    x = torch.randn(2, 5, 4, 2, 2)
    t = torch.arange(10).view(2, 5)
    wide = windowed(model, 3, 5, 1)
    assert relative_error(wide(x, t), model(x, t)) <= 1e-6


def test_wrong_steps_are_named() -> None:
    diffusion = create_diffusion("")
    with pytest.raises(ValueError, match=r"t must be \(B,\) with B = 2, or \(B, F\) with F = 3, got \(2, 2\)"):
        diffusion.training_losses(model, drawn(0), STEPS[:, :2])
