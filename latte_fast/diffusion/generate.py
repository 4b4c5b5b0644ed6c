"""Many samples of a model: sample i depends on the seed and i alone, in fixed chunks that any number of ranks share.

A chunk is `batch` consecutive indices, the last one padded, so that every chunk has the same shape and a sample the
same neighbours on any number of ranks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latte_fast.diffusion.gaussian import Model
from latte_fast.diffusion.noise import StepNoise, Use, generator, normal
from latte_fast.diffusion.sampling import Diffusion, guided


class Chunk(NamedTuple):
    """Samples `numbers`, of which the first `wanted` are kept; none of a chunk that only keeps ranks in step."""

    numbers: list[int]
    wanted: int


def chunks(count: int, batch: int, rank: int = 0, ranks: int = 1, in_step: bool = False) -> list[Chunk]:
    """A rank's share of the chunks of samples 0 .. count - 1.

    Args:
        count: samples in all.
        batch: of a chunk.
        rank: of this process.
        ranks: processes that share the chunks.
        in_step: every rank gets equally many, the surplus unwanted, as a model sharded over ranks needs.
    """
    for name, value in (("count", count), ("batch", batch)):
        if value < 1:
            raise ValueError(f"chunks: {name} must be positive, got {value}")
    first = list(range(0, count, batch))
    mine = [Chunk(list(range(i, i + batch)), min(batch, count - i)) for i in first[rank::ranks]]
    if in_step:
        most = -(-len(first) // ranks)
        mine += [Chunk(list(range(batch)), 0)] * (most - len(mine))
    return mine


def labels_of(numbers: Sequence[int], asked: Sequence[int], classes: int, seed: int) -> Tensor:
    """(B,) the classes of samples: those asked for in turn, or drawn by (seed, number) where none is."""
    if asked:
        return torch.tensor([asked[number % len(asked)] for number in numbers])
    return torch.tensor([int(generator(seed, number, Use.LABEL).integers(classes)) for number in numbers])


def generate(
    diffusion: Diffusion,
    model: Model,
    numbers: Sequence[int],
    shape: Sequence[int],
    *,
    seed: int,
    method: str = "ddpm",
    scale: float = 1.0,
    condition: dict[str, Tensor] | None = None,
    null: dict[str, Tensor] | None = None,
    eta: float = 0.0,
    clip_denoised: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Tensor:
    """Samples `numbers` as (B, *shape) in fp32.

    Args:
        diffusion: of as many steps as wanted.
        model: called with (x, t, **condition).
        numbers: of the samples; each number's noise is its own.
        shape: of one sample, (F, C, H, W).
        seed: with which numbers are drawn.
        method: one of METHODS.
        scale: of classifier-free guidance; 1 is none, and the null condition is not computed.
        condition: keywords of the model, B rows each.
        null: the same without the condition, for guidance.
        eta: of DDIM; 0 draws no noise.
        clip_denoised: whether x_0 is kept in [-1, 1], as pixels are and latents are not.
        device: of the model.
        dtype: of the model's input.
        progress: whether to show the steps.
    """

    def in_dtype(x: Tensor, t: Tensor, **given: Any) -> Tensor:
        return unguided(x.to(dtype), t, **given).float()

    unguided, model = model, in_dtype
    condition = dict(condition or {})
    if scale != 1.0 and condition:
        if null is None or set(null) != set(condition):
            raise ValueError(f"generate: null must hold {', '.join(condition)} for guidance, got {null and list(null)}")
        model = guided(in_dtype, scale)
        condition = {name: torch.cat([value, null[name]]) for name, value in condition.items()}
    noise = torch.stack([normal(seed, number, shape, Use.START) for number in numbers]).to(device)
    kwargs: dict[str, Any] = {}
    if method == "ddpm" or (method == "ddim" and eta):
        kwargs["draw"] = StepNoise(seed, numbers)
    elif method == "ddim":
        kwargs["draw"] = torch.zeros_like
    if method == "ddim":
        kwargs["eta"] = eta
    return diffusion.sample(
        method,
        model,
        tuple(noise.shape),
        noise=noise,
        clip_denoised=clip_denoised,
        model_kwargs={name: value.to(device) for name, value in condition.items()},
        progress=progress,
        **kwargs,
    )
