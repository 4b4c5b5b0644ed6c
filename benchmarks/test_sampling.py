"""Sampling end to end: guided DDIM steps of a class-conditional model, then the VAE's decoder to pixels."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.contenders import FRAMES, PRESETS, SIDE, affordable, device, gated, large, titled
from latte_fast import Latte, Replay, reference, testing
from latte_fast.codecs.vae import Autoencoder
from latte_fast.diffusion import create_diffusion, guided

HALF, STEPS, CLASSES = torch.bfloat16, 4, 101


def decoder() -> Any:
    """Builds a diffusers AutoencoderKL of Stable Diffusion's shape, a quarter as wide, with random weights.

    Without diffusers it is None, and the sampling loop races without a decoder.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        return None

    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    widths = (32, 64, 128, 128)
    vae = AutoencoderKL(down_block_types=down, up_block_types=up, block_out_channels=widths, layers_per_block=2)
    return vae.eval().to(device(), HALF)


@pytest.mark.parametrize("name", ["Latte-S/2", large("Latte-XL/2")])
def test_clip(name: str, compare: Any) -> None:
    torch.manual_seed(0)
    depth = affordable(name, 2, passes=2)
    kwargs = PRESETS[name] | {"depth": depth, "num_frames": FRAMES, "input_size": SIDE, "num_classes": CLASSES}
    oracle = testing.refill(reference.latte.Latte(**kwargs, extras=2)).eval()
    ours = Latte(**kwargs, extras=2).eval()
    ours.load_state_dict(oracle.state_dict())
    vae = decoder()
    decode = Autoencoder(copy.deepcopy(vae), "random", device(), HALF).decode if vae else torch.Tensor.float
    diffusion = create_diffusion(f"ddim{STEPS}")
    noise = torch.randn(1, FRAMES, 4, SIDE, SIDE)
    labels = torch.tensor([7, CLASSES], device=device())

    @torch.no_grad()
    def latents(model: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return model(x.to(dtype), t, y=labels).float()

        x = noise.to(device())
        return diffusion.ddim_sample_loop(guided(predict, 4.0), x.shape, x, clip_denoised=False)

    @torch.no_grad()
    def upstream() -> torch.Tensor:
        found = latents(oracle, HALF)
        return vae.decode(found[0].to(HALF) / 0.18215).sample if vae else found

    def check(fast: nn.Module = ours) -> None:
        exact = latents(oracle.float(), torch.float32)
        same = latents(oracle.to(device(), HALF), HALF)
        testing.assert_no_worse_than_torch("latents", latents(fast.to(device(), HALF), HALF), same, exact)

    oracle.to(device())
    ours.to(device())
    contenders: dict[str, Callable | str] = {
        "ours": lambda: decode(latents(ours, HALF)),
        "oracle eager (upstream's code path)": upstream,
    }
    if torch.cuda.is_available():
        replayed = Replay(ours)
        run = gated(lambda: check(replayed), lambda: decode(latents(replayed, HALF)))
        contenders["ours, replayed as a CUDA graph"] = run
    pixels = "a narrow VAE" if vae else "no VAE, for want of diffusers"
    title = f"{titled(name, depth, HALF)}, {STEPS} guided DDIM steps and {pixels}"
    compare(title, contenders, check, seconds=15.0)
