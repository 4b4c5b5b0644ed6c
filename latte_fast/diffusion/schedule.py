"""Noise schedules, respacing, and the float64 tables of a diffusion process."""

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from numbers import Integral

import numpy as np

SCHEDULES = ("linear", "squaredcos_cap_v2")


def beta_schedule(name: str, steps: int) -> np.ndarray:
    """Returns betas (T,), float64: "linear", 1e-4 to 0.02 times 1000 / T, or "squaredcos_cap_v2", the cosine one."""
    if steps < 1:
        raise ValueError(f"beta_schedule: steps must be positive, got {steps}")
    if name == "linear":
        if steps < 21:
            rule = 'at least 21 diffusion steps for "linear", whose betas would reach 1'
            raise ValueError(f"beta_schedule: steps must be {rule}, got {steps}")
        return np.linspace(1e-4, 0.02, steps, dtype=np.float64) * (1000 / steps)
    if name == "squaredcos_cap_v2":
        bars = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return np.array([min(1 - after / before, 0.999) for before, after in itertools.pairwise(bars)])
    raise ValueError(f"beta_schedule: name must be one of {', '.join(SCHEDULES)}, got {name!r}")


def space_timesteps(steps: int, respacing: str | Sequence[int] | None) -> list[int]:
    """Returns the original steps that a respaced process keeps, ascending.

    Args:
        steps: number of steps of the original process.
        respacing: "" or None keeps all; "ddimN" keeps N steps at an integer stride from 0; "a,b,c" or a list keeps a, b
            and c steps of equal sections, each spread from its section's first step to its last.
    """
    if respacing is None or respacing in ("", []):
        return list(range(steps))
    if isinstance(respacing, str) and respacing.startswith("ddim"):
        wanted = _positive(respacing.removeprefix("ddim"), respacing)
        stride = next((s for s in range(1, steps) if len(range(0, steps, s)) == wanted), None)
        if stride is None:
            rule = f"such that an integer stride over {steps} steps takes N of them"
            raise ValueError(f"space_timesteps: respacing must be ddimN {rule}, got {respacing!r}")
        return list(range(0, steps, stride))
    counts = _counts(respacing)
    base, extra = divmod(steps, len(counts))
    kept, begin = [], 0
    for section, count in enumerate(counts):
        size = base + (section < extra)
        if count > size or count < 1:
            raise ValueError(
                f"space_timesteps: respacing must take 1 to {size} steps of a section of {size}, got {count}"
            )
        spread = (size - 1) / (count - 1) if count > 1 else 1.0
        # the fraction accumulates, as upstream's does: rounding i * spread gives other steps
        at = 0.0
        for _ in range(count):
            kept.append(begin + round(at))
            at += spread
        begin += size
    return sorted(set(kept))


def _counts(respacing: object) -> list[int]:
    """Returns the number of steps of each section."""
    if isinstance(respacing, str):
        return [_positive(part, respacing) for part in respacing.split(",")]
    if not isinstance(respacing, Sequence) or not all(isinstance(count, Integral) for count in respacing):
        raise _refused(respacing)
    return list(respacing)


def _positive(text: str, whole: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise _refused(whole)
    return int(text)


def _refused(respacing: object) -> ValueError:
    rule = 'like "250", "ddim50", "10,15,20" or [10, 15, 20]'
    return ValueError(f"space_timesteps: respacing must be {rule}, got {respacing!r}")


class Tables:
    """Coefficients that depend on the step alone, (T,) float64 each."""

    def __init__(self, betas: np.ndarray):
        if betas.ndim != 1 or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError("Tables: betas must be one axis of values in (0, 1]")
        self.betas = betas.astype(np.float64)

    @classmethod
    def names(cls) -> list[str]:
        return ["betas", *(name for name, value in vars(cls).items() if isinstance(value, cached_property))]

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        return np.cumprod(1 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def one_minus_alphas_cumprod_prev(self) -> np.ndarray:
        return 1 - self.alphas_cumprod_prev

    @cached_property
    def sqrt_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(1 - self.alphas_cumprod)

    @cached_property
    def log_one_minus_alphas_cumprod(self) -> np.ndarray:
        return np.log(1 - self.alphas_cumprod)

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(1 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> np.ndarray:
        return np.sqrt(1 / self.alphas_cumprod - 1)

    @cached_property
    def posterior_share(self) -> np.ndarray:
        """The posterior's variance over 1 - alphas_cumprod_prev, at most 1."""
        return np.minimum(self.betas / (1 - self.alphas_cumprod), 1.0)

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """Log of the posterior's variance; step 0, whose variance is 0, takes step 1's."""
        variance = self.posterior_variance
        return np.log(np.append(variance[1], variance[1:])) if len(variance) > 1 else np.log(self.betas)

    @cached_property
    def log_betas(self) -> np.ndarray:
        return np.log(self.betas)

    @cached_property
    def fixed_large_variance(self) -> np.ndarray:
        return np.append(self.posterior_variance[1:2], self.betas[1:]) if len(self.betas) > 1 else self.betas

    @cached_property
    def fixed_large_log_variance(self) -> np.ndarray:
        return np.log(self.fixed_large_variance)

    @cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)

    @cached_property
    def snr(self) -> np.ndarray:
        return self.alphas_cumprod / (1 - self.alphas_cumprod)


class StraightTables(Tables):
    """Coefficients of rectified flow, x_t = (1 - s) x_0 + s * noise, for noise levels s (T,)."""

    def __init__(self, levels: np.ndarray):
        self.sqrt_one_minus_alphas_cumprod = levels.astype(np.float64)
        self.sqrt_alphas_cumprod = 1 - self.sqrt_one_minus_alphas_cumprod

    @property
    def betas(self) -> np.ndarray:  # type: ignore[override]
        raise ValueError("rectified flow has no betas: its samplers are euler and heun, and those without noise")


def straight_levels(steps: int, kept: Sequence[int]) -> np.ndarray:
    """Returns the noise levels of rectified flow at the kept ones of its steps: 1 at the last, 1 / steps at step 0."""
    return (np.array(kept, dtype=np.float64) + 1) / steps


def respaced_betas(betas: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """Returns betas for which the kept steps have the original process's cumulative alphas."""
    bars = np.cumprod(1 - betas)[list(kept)]
    return 1 - bars / np.append(1.0, bars[:-1])
