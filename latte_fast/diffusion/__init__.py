"""Diffusion for any model callable; `create_diffusion` has upstream's arguments, its result upstream's methods."""

from collections.abc import Sequence

from latte_fast.diffusion.guidance import guided
from latte_fast.diffusion.samplers import METHODS, Diffusion
from latte_fast.diffusion.schedule import beta_schedule, respaced_betas, space_timesteps, straight_levels
from latte_fast.diffusion.timesteps import sample_timesteps

__all__ = ["METHODS", "Diffusion", "create_diffusion", "guided", "sample_timesteps"]


def create_diffusion(
    timestep_respacing: str | Sequence[int] | None,
    noise_schedule: str = "linear",
    use_kl: bool = False,
    sigma_small: bool = False,
    predict_xstart: bool = False,
    learn_sigma: bool = True,
    rescale_learned_sigmas: bool = False,
    diffusion_steps: int = 1000,
    *,
    prediction: str | None = None,
    min_snr: float | None = None,
) -> Diffusion:
    """Builds a diffusion process from upstream's arguments.

    Args:
        timestep_respacing: "" for all steps, "250", "ddim50" or "10,15,20" for fewer.
        noise_schedule: "linear" or "squaredcos_cap_v2".
        use_kl: whether to train on the whole variational bound.
        sigma_small: whether a variance that is not learned is the posterior's instead of the schedule's.
        predict_xstart: whether the model predicts x_0 instead of the noise.
        learn_sigma: whether the model's last C channels are its variance.
        rescale_learned_sigmas: whether to weight the bound's term by T / 1000.
        diffusion_steps: number of steps of the original process.
        prediction: "epsilon", "start_x", "v" or "flow" (rectified flow, whatever the noise schedule); overrides
            predict_xstart.
        min_snr: gamma of min-SNR weighting, 5 is usual.
    """
    kept = space_timesteps(diffusion_steps, timestep_respacing)
    if prediction == "flow":
        levels = straight_levels(diffusion_steps, kept)
    else:
        levels = respaced_betas(beta_schedule(noise_schedule, diffusion_steps), kept)
    fixed = "fixed_small" if sigma_small else "fixed_large"
    return Diffusion(
        levels,
        timestep_map=kept,
        prediction=prediction or ("start_x" if predict_xstart else "epsilon"),
        variance="learned_range" if learn_sigma else fixed,
        loss="rescaled_kl" if use_kl else "rescaled_mse" if rescale_learned_sigmas else "mse",
        min_snr=min_snr,
    )
