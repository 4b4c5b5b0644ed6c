"""latte-fast calibrate."""

from typing import Annotated, Literal

import tyro

from latte_fast.cli.device import pick_device
from latte_fast.cli.endings import sentence


def calibrate(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    psnr: float | None = None,
    speed: float | None = None,
    steps: int = 50,
    method: Literal["ddim", "dpm++", "unipc", "euler", "heun"] = "ddim",
    guidance: float | None = None,
    samples: int = 16,
    seed: int = 0,
    weights: Literal["ema", "model"] = "ema",
    vae: str | None = None,
    device: str = "",
    out: str | None = None,
    loop: Literal["own", "any"] = "own",
    edges: bool = False,
) -> None:
    """Search plans that compute fewer steps: measure what reuse loses, and keep the cheapest plans that lose little.

    A plan computes the model's blocks at some steps and extrapolates what they added at the others. Two are written,
    high (at least 40 dB to the films that compute every step) and fast (32 dB), for `latte-fast sample --quality`,
    with curves.png and curves.md, which show what each number of computed steps loses. For each plan a line says
    whether as many steps of dpm++ or unipc come nearer to the films of very many steps.

    Example: latte-fast calibrate runs/ucf && latte-fast sample runs/ucf --quality high

    Args:
        run: folder of a run; plans are written to its folder plans/.
        psnr: least PSNR in dB of a single plan, named psnr-<number>, instead of the two.
        speed: how many times fewer forwards the single best plan makes, named speed-<number>, instead of the two.
        steps: number of sampling steps.
        method: sampler.
        guidance: scale of classifier-free guidance, 1 is none; by default 4, without classes 1.
        samples: number of samples that plans are searched on; twice as many others say what a plan loses.
        seed: seed of their noise.
        weights: the EMA of the weights (ema), or the weights themselves (model).
        vae: folder of a diffusers AutoencoderKL, or identity for pixels; by default the VAE of the run.
        device: device of the model, by default cuda where there is one.
        out: folder for the plans, instead of the run's.
        loop: own makes plans that latte-fast sample follows; any makes plans for the loops of other libraries, which
            StepCache needs and which lose more; their files are named <name>-any-loop.
        edges: print also how plans do that are chosen by the error of each stretch of reused steps, once measured
            cheaply and once exactly, on one sample.
    """
    # imported here, as --help needs neither torch's models nor matplotlib
    from latte_fast.calibration.plans import find_plans

    try:
        written = find_plans(
            run,
            psnr=psnr,
            speed=speed,
            steps=steps,
            method=method,
            guidance=guidance,
            samples=samples,
            seed=seed,
            weights=weights,
            vae=vae,
            device=pick_device(device, "calibrate"),
            out=out,
            progress=True,
            loop=loop,
            edges=print if edges else None,
            say=print,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(sentence(error, "calibrate")) from None
    for path, found in written.items():
        print(f"{path}: {found.plan.summary()}, {found.speed:.2f}x fewer forwards, {found.expected:.1f} dB")
