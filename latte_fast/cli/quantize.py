"""latte-fast quantize."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from latte_fast.cli.device import pick_device
from latte_fast.cli.endings import sentence


def quantize(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Path,
    precision: Literal["fp8"] = "fp8",
    layers: tuple[Literal["qkv", "proj", "fc1", "fc2"], ...] = ("qkv", "fc1", "fc2"),
    samples: int = 8,
    steps: int = 20,
    guidance: float | None = None,
    seed: int = 0,
    weights: Literal["ema", "model"] = "ema",
    vae: str | None = None,
    device: str = "",
) -> None:
    """Write a trained model with 8-bit weights, which `latte-fast sample` and latte_fast.load read.

    A few samples are drawn first; weights are rounded so that their errors cancel on what the layers saw.

    Example: latte-fast quantize runs/ucf --out ucf-fp8.safetensors && latte-fast sample ucf-fp8.safetensors

    Args:
        run: a run's folder, one of its checkpoints, or a .pt or .safetensors file under upstream's keys.
        out: new file, .safetensors; what is not in 8 bits is written in bf16.
        precision: fp8 is e4m3 with a scale a row.
        layers: kinds of linear layers of the blocks that become 8-bit.
        samples: number of samples drawn for the rounding; with 0, weights are rounded to nearest.
        steps: number of their sampling steps.
        guidance: scale of classifier-free guidance, 1 is none; by default 4, without classes 1.
        seed: seed of their noise.
        weights: the EMA of the weights (ema), or the weights themselves (model).
        vae: folder of a diffusers AutoencoderKL, or identity for pixels; by default the VAE of the run.
        device: device of the model, by default cuda where there is one.
    """
    # imported here, as --help needs none of it
    import torch

    from latte_fast.locks import one_writer_of
    from latte_fast.quantization import convert
    from latte_fast.runs.load import about_of, load
    from latte_fast.runs.weights8 import save_8bit
    from latte_fast.sampling.sample import sample

    try:
        if samples < 0:
            raise ValueError(f"quantize: samples must be at least 0, got {samples}")
        if out.suffix != ".safetensors":
            raise ValueError(f"quantize: out must end in .safetensors, got {out.name}")
        where = pick_device(device, "quantize")
        with one_writer_of(out, "quantize"):
            if out.exists():
                raise ValueError(f"quantize: out must not exist, got {out}")
            trained = load(run, weights, where)
            # the products of a GPU take bf16; elsewhere rounding starts from what there is
            on_gpu = next(trained.model.parameters()).is_cuda
            dtype = torch.bfloat16 if on_gpu else torch.float32

            def draw(model: torch.nn.Module) -> None:
                sample(trained, samples=samples, guidance=guidance, steps=steps, seed=seed, vae=vae, dtype=dtype)

            report = convert.quantize(
                trained.model.to(dtype), precision, layers=layers, keep=False, calibrate=draw if samples else None
            )
            save_8bit(trained.model.to(torch.bfloat16), out, about_of(trained))
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(sentence(error, "quantize")) from None
    print(report)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
