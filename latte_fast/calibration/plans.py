"""A run's plans: found by the search, kept beside the run with their curves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latte_fast.calibration.fewer_steps import beside_fewer_steps
from latte_fast.calibration.search import FEWEST, Found, Loop, budget_of, calibrate
from latte_fast.files import atomic
from latte_fast.locks import one_writer
from latte_fast.runs.load import load
from latte_fast.runs.plan import PLANS
from latte_fast.runs.plot import pyplot
from latte_fast.sampling.request import Request
from latte_fast.sampling.sample import open_source


def find_plans(
    run: str | Path,
    *,
    psnr: float | None = None,
    speed: float | None = None,
    steps: int = 50,
    method: Any = "ddim",
    guidance: float | None = None,
    samples: int = 16,
    seed: int = 0,
    weights: str = "ema",
    vae: str | Path | None = None,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    progress: bool = False,
    loop: Loop = "own",
    edges: Callable[[str], object] | None = None,
    say: Callable[[str], object] | None = None,
) -> dict[Path, Found]:
    """Calibrates a run and writes its plans and curves; returns what was found by file. Same names are replaced.

    `say` is told how each plan does beside fewer steps of other samplers.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"calibrate: run must be the folder of a run, got {run}")
    if psnr is not None and not 0 < psnr <= 80:
        raise ValueError(f"calibrate: psnr must be in (0, 80] dB, got {psnr:g}")
    if method == "ddpm":
        raise ValueError("calibrate: method must be another than ddpm, whose noise a plan does not hold")
    if steps < FEWEST + 2:
        raise ValueError(f"calibrate: steps must be at least {FEWEST + 2}, got {steps}")
    speeds = {} if speed is None else {f"speed-{speed:g}": speed}
    tiers = {} if psnr is None else {f"psnr-{psnr:g}": psnr}
    if speed is not None:
        budget_of(Request(steps=steps, method=method).calls, speed)  # refuses one out of range
    folder = Path(out) if out is not None else run / PLANS
    source = open_source(load(run, weights, device), vae, (), torch.float32, device)
    scale = guidance if guidance is not None else 4.0 if source.adapter.choices else 1.0
    request = Request(count=samples, seed=seed, steps=steps, method=method, scale=scale)
    with one_writer(folder, "calibrate"):
        found, curve = calibrate(source, request, tiers, progress, speeds, loop, edges)
        written = {}
        for name, best in found.items():
            path = folder / f"{name}{'-any-loop' * (loop == 'any')}.json"
            with atomic(path) as partial:
                best.measured_plan().save(partial)
            written[path] = best
        write_curve(folder, curve, found)
        if say is not None:
            for line in beside_fewer_steps(source, request, found):
                say(line)
    return written


def write_curve(folder: Path, curve: list[Found], tiers: dict[str, Found]) -> None:
    """Writes curves.md, and curves.png where matplotlib is installed: PSNR against computed steps."""
    lines = ["| computed steps | fewer forwards | PSNR (dB) | C computed, - repeated, else the order of the reuse |"]
    lines.append("|---|---|---|---|")
    for found in [*curve, *tiers.values()]:
        marks = str(found.plan).split()[-1]
        lines.append(f"| {found.plan.computed} | {found.speed:.2f}x | {found.expected:.2f} | `{marks}` |")
    with atomic(folder / "curves.md") as partial:
        partial.write_text("\n".join(lines) + "\n")
    try:
        plt = pyplot()
    except RuntimeError:
        return
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axis.plot([found.speed for found in curve], [found.expected for found in curve], marker="o", markersize=3)
    for name, found in tiers.items():
        axis.annotate(name, (found.speed, found.expected), textcoords="offset points", xytext=(6, 6))
        axis.plot([found.speed], [found.expected], marker="D", color="C1")
    axis.set_xlabel("forwards of all steps / forwards of the plan")
    axis.set_ylabel("PSNR to the films that compute every step, dB")
    axis.grid(alpha=0.3)
    try:
        with atomic(folder / "curves.png") as partial:
            figure.savefig(partial, dpi=100, format="png")
    finally:
        plt.close(figure)
