"""Plots of a run's curves."""

import math
from pathlib import Path
from typing import Any

from latte_fast.files import atomic
from latte_fast.runs.log import LOG, read_log

CURVES = {"loss": "loss", "lr": "learning rate", "clips_per_s": "clips a second", "grad_norm": "gradient norm"}
# start of the names of what `eval` measured, at some steps alone
MEASURED = "eval_"
# of a VQGAN's log, in a third row
OF_CODES = {"psnr": "PSNR in dB", "perplexity": "perplexity of the codes"}


def pyplot() -> Any:
    """Returns pyplot, set to draw to files; raises an error that says how to install it."""
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError("plot: matplotlib must be installed; pip install 'latte_fast[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def plot_run(run: str | Path, out: str | Path | None = None) -> Path:
    """Plots loss, learning rate, throughput, gradient norm, and what else a log has, by default to run/curves.png."""
    plt = pyplot()
    lines = read_log(Path(run) / LOG)
    if not lines:
        raise ValueError(f"plot: run must be a folder with lines in {LOG}, got {run}")
    out = Path(run) / "curves.png" if out is None else Path(out)
    steps = [line["step"] for line in lines]
    known = plt.FigureCanvasBase.get_supported_filetypes()
    if out.suffix.lower().removeprefix(".") not in known:
        raise ValueError(f"plot: out must end in one of {', '.join(known)}, got {out.name}")
    curves = CURVES | {name: title for name, title in OF_CODES.items() if name in lines[0]}
    curves |= {name: name.removeprefix(MEASURED) for name in measured(lines)}
    rows = -(-len(curves) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 3.5 * rows), layout="constrained")
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, title) in zip(axes.flat, curves.items(), strict=False):
        values = [line.get(name, float("nan")) for line in lines]
        if name == "loss":
            axis.plot(steps, values, color="0.8", linewidth=1)
            values = smooth(values)
            if min(values, default=0) > 0:
                axis.set_yscale("log")
        if name.startswith(MEASURED):
            axis.plot(*zip(*points(lines, name), strict=True), marker="o", linewidth=1.5)
        else:
            axis.plot(steps, values, linewidth=1.5)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    try:
        with atomic(out) as partial:
            figure.savefig(partial, dpi=100)
    finally:
        plt.close(figure)
    return out


def measured(lines: list[dict[str, Any]]) -> list[str]:
    """Returns the names of what `eval` measured."""
    return sorted({name for line in lines for name in line if name.startswith(MEASURED)})


def points(lines: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Returns (step, value) of the lines that have a finite value of this name."""
    return [(line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]


def smooth(values: list[float], share: float = 0.02) -> list[float]:
    """Returns the running mean over a window of `share` of all values."""
    window = max(1, int(len(values) * share))
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]
