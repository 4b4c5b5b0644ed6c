"""The figures as Markdown, and the curves as a picture a model."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.plots import finish, pyplot
from benchmarks.reuse.store import Store

RULES = ("TeaCache", "MagCache", "TaylorSeer")


def write_tables(out: Path, stores: Sequence[Store]) -> None:
    """Writes reuse.md, and reuse-<run>.png and samplers-<run>.png for each run where matplotlib is installed."""
    lines = [line for store in stores for line in lines_of(store)]
    (out / "reuse.md").write_text("\n".join(lines) + "\n")
    try:
        plt = pyplot()
    except RuntimeError:
        return
    for store in stores:
        if store.below("budget/"):
            plot(plt, store, out / f"reuse-{store.path.stem}.png")
        if store.below("converged/"):
            plot_samplers(plt, store, out / f"samplers-{store.path.stem}.png")


def lines_of(store: Store) -> Iterator[str]:
    yield f"### {store.path.stem}\n"
    if "calibrate, seconds" in store.figures:
        yield f"`latte-fast calibrate`: {store.figures['calibrate, seconds']} s\n"
    rounds = list(store.below("round/").values())
    if rounds:
        yield f"Medians of {len(rounds)} rounds in turns.\n"
        yield "| quality | seconds (least, most) | faster | PSNR (dB) | recognised |\n|---|---|---|---|---|"
        middle = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        for name, took in middle.items():
            span = f"{took:.2f} ({min(r[name] for r in rounds):.2f}, {max(r[name] for r in rounds):.2f})"
            score = store.figures.get(f"score/{name}", {"psnr": "", "recognised": float("nan")})
            faster = middle["exact"] / took
            yield f"| {name} | {span} | {faster:.2f}x | {score['psnr']} | {score['recognised']:.1%} |"
        yield ""
    of_samplers = store.below("calibrated/").items()
    for name, f in (*store.below("loss/").items(), *((name.replace("/", ", "), f) for name, f in of_samplers)):
        yield f"- {name}: {f['forwards']:g} forwards, {f['psnr']} dB, `{f['what']}`"
    yield ""
    budgets = by_number(store.below("budget/"), store.below("contender/"))
    if budgets:
        columns = ["plan", "best mask", *(r for r in RULES if any(r in row for row in budgets.values()))]
        yield f"| forwards | {' | '.join(columns)} | plan over mask |\n|{'---|' * (len(columns) + 2)}"
        for n, row in sorted(budgets.items()):
            cells = [shown(row.get(c), n) for c in columns]
            ahead = row["plan"]["psnr"] - row["best mask"]["psnr"] if {"plan", "best mask"} <= set(row) else None
            yield f"| {n} | {' | '.join(cells)} | {'' if ahead is None else f'{ahead:+.1f}'} |"
        yield ""
    for name, f in store.below("broadcast/").items():
        yield f"- {name}: {f['forwards']:g} forwards, {f['psnr']} dB ({f['what']})"
    converged = store.below("converged/")
    if converged:
        methods = list(dict.fromkeys(name.split("/")[0] for name in converged))
        counts = [int(name.split("/")[1].split()[0]) for name in converged]
        heads = [f"{m}, {what}" for m in methods for what in ("fewer steps", "plan of 50")]
        yield f"\n| forwards | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}"
        for n in sorted(set(counts)):
            cells = [str(converged.get(f"{m}/{n} {w}", "")) for m in methods for w in ("steps", "of 50")]
            yield f"| {n} | {' | '.join(cells)} |"
        yield ""


def by_number(*tables: dict[str, Any]) -> dict[int, dict[str, Any]]:
    out: dict[int, dict[str, Any]] = {}
    for table in tables:
        for name, figure in table.items():
            number, what = name.split("/")
            out.setdefault(int(number), {})[what] = figure
    return out


def shown(figure: dict[str, Any] | None, forwards: float) -> str:
    """Returns a PSNR, with the number of forwards where it is another than that of the row."""
    if figure is None or figure["psnr"] != figure["psnr"]:
        return ""
    more = "" if figure["forwards"] == forwards else f" at {figure['forwards']:g}"
    return f"{figure['psnr']:.1f}{more}"


def plot(plt: Any, store: Store, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 4))
    table = by_number(store.below("budget/"), store.below("contender/"))
    styles = {"plan": ("C2", "-", "o"), "best mask": ("C0", "--", "s"), "TeaCache": ("C3", ":", "v"),
              "MagCache": ("C4", ":", "^"), "TaylorSeer": ("C1", ":", "D")}  # fmt: skip
    for name, (colour, line, marker) in styles.items():
        points = sorted((row[name]["forwards"], row[name]["psnr"]) for row in table.values() if name in row)
        if points:
            axis.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker=marker, markersize=3, label=name)
    for level in (32, 40):
        axis.axhline(level, color="0.8", linewidth=0.8, zorder=0)
    axis.set_xlabel("forwards of the 50 of every step")
    axis.set_ylabel("PSNR to the films of every step, dB")
    axis.set_title(store.path.stem)
    axis.legend(frameon=False, loc="lower right")
    finish(plt, figure, path)


def plot_samplers(plt: Any, store: Store, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 4))
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for name, distance in store.below("converged/").items():
        method, what = name.split("/")
        number, kind = what.split(" ", 1)
        points.setdefault((method, kind), []).append((int(number), distance))
    colours = dict(zip(dict.fromkeys(method for method, _ in points), ("C2", "C0", "C3"), strict=False))
    for (method, kind), places in points.items():
        line, label = ("--", f"{method}, fewer steps") if kind == "steps" else ("-", f"{method}, plan of 50 steps")
        axis.plot(*zip(*sorted(places), strict=True), color=colours[method], linestyle=line, marker="o", markersize=3,
                  label=label)  # fmt: skip
    axis.set_xlabel("forwards")
    axis.set_ylabel("PSNR to the converged films, dB")
    axis.set_title(store.path.stem)
    axis.legend(frameon=False, loc="lower right")
    finish(plt, figure, path)
