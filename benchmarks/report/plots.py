"""A run as pictures: bars against contenders, a roofline, curves of time with their fitted exponents."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.report.compare import OURS
from benchmarks.report.record import Results, Row

COLOURS = ("#1b7837", "#5aae61", "#9970ab", "#d9a441", "#4393c3", "#878787", "#d6604d")


def pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise RuntimeError("plots need matplotlib: pip install 'latte_fast[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_all(results: Results, folder: Path) -> list[Path]:
    """Saves bars-<suite>.png of every suite with a race, roofline.png and scaling.png if there are rows for them."""
    plt = pyplot()
    made = []
    for suite in dict.fromkeys(row.suite for row in results.rows if not row.curve):
        made.append(bars(plt, results, suite, folder / f"bars-{suite}.png"))
    if (
        any(row.bytes and row.flops and row.timed for row in results.rows)
        and {"copy", "gemm"} <= results.ceilings.keys()
    ):
        made.append(roofline(plt, results, folder / "roofline.png"))
    if any(row.curve for row in results.rows):
        made.append(scaling(plt, [r for r in results.rows if r.curve and r.timed], folder / "scaling.png"))
    return [path for path in made if path is not None]


def finish(plt: Any, figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


def bars(plt: Any, results: Results, suite: str, path: Path) -> Path | None:
    """Plots each contender's time as a multiple of ours, which is the line at 1."""
    races = [(title, race) for (name, title), race in results.races() if name == suite]
    races = [(t, race) for t, race in races if OURS in race and race[OURS].timed and len(race) > 1]
    if not races:
        return None
    names = list(dict.fromkeys(n for _, race in races for n in race if n != OURS))
    height = 0.8 / len(names)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.26 * len(races) * max(2, len(names))))
    for i, name in enumerate(names):
        at, width = [], []
        for j, (_, race) in enumerate(races):
            if name in race and race[name].timed:
                at.append(j + (i - (len(names) - 1) / 2) * height)
                width.append(race[name].median / race[OURS].median)
        drawn = axes.barh(at, width, height * 0.92, label=name, color=COLOURS[(i + 1) % len(COLOURS)])
        axes.bar_label(drawn, fmt="%.2fx", fontsize=7, padding=2)
    axes.axvline(1, color=COLOURS[0], linewidth=1.5, label="ours")
    axes.set_yticks(range(len(races)), [title for title, _ in races], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time, as a multiple of ours")
    axes.set_title(f"{suite}: {results.device}", fontsize=9)
    axes.legend(fontsize=7, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return finish(plt, figure, path)


def roofline(plt: Any, results: Results, path: Path) -> Path:
    """Plots speed against arithmetic intensity, under the ceilings measured in the same run."""
    copy, gemm = results.ceilings["copy"], results.ceilings["gemm"]
    figure, axes = plt.subplots(figsize=(8, 5))
    rows = [r for r in results.rows if r.bytes and r.flops and r.timed]
    places = [r.flops / r.bytes for r in rows]
    low, high = min([*places, 0.1]) / 2, max([*places, gemm / copy]) * 4
    knee = gemm / copy
    axes.plot([low, knee, high], [low * copy / 1e9, gemm / 1e9, gemm / 1e9], color="#444444", linewidth=1.2)
    for i, name in enumerate(dict.fromkeys(r.contender for r in rows)):
        mine = [r for r in rows if r.contender == name]
        xs, ys = [r.flops / r.bytes for r in mine], [r.flops / r.median / 1e9 for r in mine]
        axes.scatter(xs, ys, s=26, label=name, color=COLOURS[i % len(COLOURS)], zorder=3 if name == OURS else 2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP a byte that has to be moved")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"under the copy bandwidth and GEMM rate of the same run: {results.device}", fontsize=9)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.2, which="both")
    return finish(plt, figure, path)


def exponent(points: Iterable[tuple[float, float]]) -> float:
    """Fits the slope of log time over log size by least squares."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(v) / len(logs) for v in zip(*logs, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread if spread else float("nan")


def scaling(plt: Any, rows: list[Row], path: Path) -> Path:
    """Plots time against size, one panel per axis; the legend has fitted exponents, the dashed line the exponent 1."""
    kinds = list(dict.fromkeys(r.axis for r in rows))
    figure, panels = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 4), squeeze=False)
    for axes, kind in zip(panels[0], kinds, strict=True):
        mine = [r for r in rows if r.axis == kind]
        for i, name in enumerate(dict.fromkeys(r.contender for r in mine)):
            points = sorted((r.at, r.median) for r in mine if r.contender == name)
            slope = f", exponent {exponent(points):.2f}" if len(points) > 1 else ""
            axes.plot(*zip(*points, strict=True), marker="o", label=name + slope, color=COLOURS[i % len(COLOURS)])
        ours = sorted((r.at, r.median) for r in mine if r.contender == OURS)
        if ours:
            axes.plot([p[0] for p in ours], [ours[0][1] * p[0] / ours[0][0] for p in ours], "--", color="#888888")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(kind)
        axes.set_ylabel("seconds")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.2, which="both")
    return finish(plt, figure, path)
