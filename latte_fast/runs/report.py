"""One HTML file that shows a run: films by class and by training step, curves, configuration, speed, machine."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latte_fast.files import atomic
from latte_fast.media.font import HEIGHT as LABEL
from latte_fast.media.picture import read_picture
from latte_fast.media.write import GAP
from latte_fast.runs.config import CONFIG, TrainConfig
from latte_fast.runs.log import LOG, read_log
from latte_fast.runs.page import curve, film, page, preformatted, section, table
from latte_fast.runs.plot import CURVES, MEASURED, OF_CODES, measured, points, smooth
from latte_fast.runs.yaml import read_config

# folder of the previews that a run writes, and the picture of a step
PREVIEWS, PREVIEW = "samples", "step-*.png"
# most steps of which previews are shown, evenly spaced from first to last
STEPS = 8


@dataclass(frozen=True)
class Shown:
    """A film in the page: uint8 (F, H, W, 3), and the class or caption that it shows."""

    video: np.ndarray
    caption: str


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    films: Sequence[Shown] = (),
    machine: str = "",
    results: Sequence[Path] = (),
) -> Path:
    """Writes the page of a run's folder, by default to run/report.html, and returns its path.

    Args:
        run: folder of the run.
        out: .html file to write, or to write anew.
        films: films drawn from the run.
        machine: the lines of `latte-fast doctor`.
        results: files that `latte-fast evaluate` wrote.
    """
    run = Path(run)
    out = run / "report.html" if out is None else Path(out)
    if out.suffix != ".html":
        raise ValueError(f"report: out must end in .html, got {out}")
    if not (run / CONFIG).is_file():
        raise ValueError(f"report: run must be a folder with {CONFIG}, got {run}")
    config, lines = read_config(run / CONFIG, TrainConfig), read_log(run / LOG)
    parts = [section("Summary", table(summary(config, lines)))]
    if films:
        parts.append(section("Films", *by_caption(films)))
    if previews := previews_of(run, config):
        parts.append(section("By training step", *previews))
    parts.append(section("Curves", *(curves_of(lines) or ["<p>The log has no lines yet.</p>"])))
    if measured_in := [table(result_of(path)) for path in results]:
        parts.append(section("Measured", *measured_in))
    parts.append(section("Configuration", preformatted((run / CONFIG).read_text())))
    if machine:
        parts.append(section("Machine", preformatted(machine)))
    with atomic(out) as partial:
        partial.write_text(page(f"Run {run.name}", parts), encoding="utf-8")
    return out


def summary(config: TrainConfig, lines: list[dict[str, Any]]) -> dict[str, object]:
    """Returns how far the run is, how fast it went, what it took, and where its metrics were best."""
    said: dict[str, object] = {"objective": config.objective}
    if not lines:
        return said | {"step": f"0 of {config.steps}"}
    last = lines[-1]
    said["step"] = f"{last['step']} of {config.steps}"
    first = next(name for name in last if name != "step")
    end = smooth(values_of(lines, first))[-1]
    said[first] = f"{lines[0][first]:.4g} at step {lines[0]['step']}, {end:.4g} at the end"
    speeds = values_of(lines, "clips_per_s")
    if speeds:
        said["speed"] = f"{statistics.median(speeds):.4g} clips a second (median)"
        said["waiting for data"] = f"{statistics.median(values_of(lines, 'data_wait')):.1%} of the time (median)"
        said["peak memory"] = f"{max(values_of(lines, 'peak_bytes')) / 1e9:.3g} GB"
    for name in measured(lines):
        found = points(lines, name)
        if found:
            said[name.removeprefix(MEASURED)] = f"{found[-1][1]:.5g} at step {found[-1][0]:g}"
    return said


def values_of(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [value for _, value in points(lines, name)]


def curves_of(lines: list[dict[str, Any]]) -> list[str]:
    titles = CURVES | OF_CODES | {name: name.removeprefix(MEASURED) for name in measured(lines)}
    found = {title: points(lines, name) for name, title in titles.items()}
    return [curve(thinned(values), title) for title, values in found.items() if values]


def thinned(values: list[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    """Returns at most so many points, evenly spaced, with the first and the last."""
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return [values[i] for i in places]


def by_caption(films: Sequence[Shown]) -> list[str]:
    """Returns the films in rows of one class or caption each, in the order in which these come first."""
    rows: dict[str, list[str]] = {}
    for shown in films:
        rows.setdefault(shown.caption, []).append(film(shown.video, shown.caption))
    return [f"<div>{''.join(row)}</div>" for row in rows.values()]


def previews_of(run: Path, config: TrainConfig) -> list[str]:
    """Returns a row of films for each of some steps, cut from the contact sheets that the run wrote."""
    sheets = sorted((run / PREVIEWS).glob(PREVIEW))
    places = sorted({*np.linspace(0, len(sheets) - 1, min(len(sheets), STEPS)).round().astype(int).tolist()})
    rows = []
    for sheet in (sheets[i] for i in places):
        step = int(sheet.stem.removeprefix("step-"))
        clips = cut_sheet(read_picture(sheet), config.size)
        rows.append(f"<div>{''.join(film(clip, f'step {step}') for clip in clips)}</div>")
    return rows


def cut_sheet(sheet: np.ndarray, size: int) -> list[np.ndarray]:
    """Cuts a contact sheet (H, W, 3) into its clips, (columns, size, size, 3) each; of another layout, into none."""
    columns = (sheet.shape[1] - GAP) // (size + GAP)
    for label in (0, LABEL):
        pitch = label + size + GAP
        rows, rest = divmod(sheet.shape[0] - GAP, pitch)
        tops = [GAP + row * pitch + label for row in range(rows)]
        # below each row of frames lies a white gap, by which sheets with labels are told from those without
        below = [sheet[top + size : top + size + GAP] for top in tops]
        if columns and rows and not rest and all((gap == 255).all() for gap in below):
            lefts = [GAP + column * (size + GAP) for column in range(columns)]
            return [np.stack([sheet[top : top + size, left : left + size] for left in lefts]) for top in tops]
    return []


def result_of(path: Path) -> dict[str, object]:
    """Returns the rows of a table about a file that `latte-fast evaluate` wrote."""
    try:
        held = json.loads(path.read_text())
        said: dict[str, object] = {held.get("name", held["metric"]): f"{held['value']:.6g}"}
        said |= {"95 % interval": "{:.6g} to {:.6g}".format(*held["interval"])} if "interval" in held else {}
        said |= {name: f"{value:.6g}" for name, value in held.get("values", {}).items()}
        return said | {"of": held["samples"].get("path", ""), "warnings": "; ".join(held["warnings"]) or "none"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"report: {path} must be what `latte-fast evaluate` wrote, got {error!r}") from error
