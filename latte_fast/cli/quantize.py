"""latte-fast quantize."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from latte_fast.cli.device import pick_device
from latte_fast.cli.endings import sentence

FP8 = tyro.conf.arg(help_behavior_hint="(default: fp8; of a token transformer int8)")
Kinds = tuple[str, ...] | None
# tokens of a sequence that are drawn to say what has changed
COMPARED = 256
KINDS = tyro.conf.arg(help_behavior_hint="(default: qkv fc1 fc2; of a token transformer all)")


def quantize(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Path,
    precision: Annotated[Literal["fp8", "int8"] | None, FP8] = None,
    layers: Annotated[tuple[Literal["qkv", "proj", "fc1", "fc2", "head"], ...], KINDS] = (),
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
        precision: format of weights and inputs, with a scale for each row: fp8 (e4m3, for GPUs) or int8 (for CPUs).
            A token transformer takes int8, for its weights alone.
        layers: kinds of linear layers that become 8-bit.
        samples: number of samples drawn for the rounding; with 0, weights are rounded to nearest. Of a token
            transformer, number of sequences whose first 256 tokens are drawn before and after, to say what has changed.
        steps: number of their sampling steps.
        guidance: scale of classifier-free guidance, 1 is none; by default 4, without classes 1.
        seed: seed of their noise.
        weights: the EMA of the weights (ema), or the weights themselves (model).
        vae: folder of a diffusers AutoencoderKL, or identity for pixels; by default the VAE of the run.
        device: device of the model, by default cuda where there is one.
    """
    # imported here, as --help needs none of it
    from latte_fast.locks import one_writer_of
    from latte_fast.runs.tokens import is_token_run

    try:
        if samples < 0:
            raise ValueError(f"quantize: samples must be at least 0, got {samples}")
        if out.suffix != ".safetensors":
            raise ValueError(f"quantize: out must end in .safetensors, got {out.name}")
        where = pick_device(device, "quantize")
        with one_writer_of(out, "quantize"):
            if out.exists():
                raise ValueError(f"quantize: out must not exist, got {out}")
            kinds = layers or None
            if is_token_run(run):
                if guidance is not None or vae is not None:
                    got = vae or f"guidance {guidance:g}"
                    raise ValueError(f"quantize: guidance and vae must be left out for a token transformer, got {got}")
                said = _tokens(run, out, precision or "int8", kinds, samples, seed, weights, where)
            else:
                draw = {"samples": samples, "guidance": guidance, "steps": steps, "seed": seed, "vae": vae}
                said = _denoiser(run, out, precision or "fp8", kinds, draw, weights, where)
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(sentence(error, "quantize")) from None
    print("\n".join([*said, f"{out}: {out.stat().st_size / 1e6:.1f} MB"]))


def _denoiser(
    run: str, out: Path, precision: str, layers: Kinds, draw: dict[str, Any], weights: str, device: str
) -> list[str]:
    import torch

    from latte_fast.quantization import convert
    from latte_fast.runs.load import about_of, load
    from latte_fast.runs.weights8 import save_8bit
    from latte_fast.sampling.sample import sample

    trained = load(run, weights, device)
    # the products of a GPU take bf16; elsewhere rounding starts from what there is
    on_gpu = next(trained.model.parameters()).is_cuda
    dtype = torch.bfloat16 if on_gpu else torch.float32
    calibrate = (lambda model: sample(trained, dtype=dtype, **draw)) if draw["samples"] else None
    report = convert.quantize(trained.model.to(dtype), precision, layers=layers, keep=False, calibrate=calibrate)
    save_8bit(trained.model.to(torch.bfloat16), out, about_of(trained))
    return [str(report)]


def _tokens(
    run: str, out: Path, precision: str, layers: Kinds, sequences: int, seed: int, weights: str, device: str
) -> list[str]:
    import torch

    from latte_fast.quantization import convert
    from latte_fast.runs.tokens import about_tokens, load_tokens
    from latte_fast.runs.weights8 import save_8bit
    from latte_fast.token_films.greedy import Greedy

    trained = load_tokens(run, weights, device)
    greedy = Greedy(trained, sequences, seed, COMPARED) if sequences else None
    report = convert.quantize(trained.model, precision, layers=layers, keep=False)
    said = [str(report)] if greedy is None else [str(report), str(greedy.changed())]
    trained.model.to(torch.bfloat16)
    save_8bit(trained.model, out, about_tokens(trained))
    return said
