"""latte-fast report."""

import json
from pathlib import Path
from typing import Annotated

import tyro

from latte_fast import info
from latte_fast.cli.endings import sentence
from latte_fast.evaluation.film_sets import SAMPLES_FILE, open_samples
from latte_fast.files import naming
from latte_fast.runs.report import Shown, write_report


def report(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    samples: tuple[Path, ...] = (),
    films: int = 48,
    out: Path | None = None,
) -> None:
    """Write a run's page: one HTML file with playing films, curves, configuration, speed and machine.

    The page loads nothing from elsewhere, so it can be sent or kept as it is. A page that is there is written anew.

    Args:
        run: folder of the run.
        samples: folders of films that `latte-fast sample` drew from the run, with what `latte-fast evaluate` measured.
        films: largest number of films shown of each folder.
        out: .html file to write, by default report.html in the run's folder.
    """
    try:
        if films < 1:
            raise ValueError(f"report: films must be at least 1, got {films}")
        shown = [one for folder in samples for one in read_films(folder, films)]
        results = [path for folder in samples for path in sorted(folder.glob("*.json")) if path.name != SAMPLES_FILE]
        print(write_report(run, out, shown, info.report(), results))
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(sentence(error, "report")) from None


def read_films(folder: Path, most: int) -> list[Shown]:
    """Reads the first films of a folder, with the classes or captions in its samples.json."""
    found = open_samples(folder)
    names: list[str] = []
    if (folder / SAMPLES_FILE).is_file():
        with naming(folder / SAMPLES_FILE):
            names = json.loads((folder / SAMPLES_FILE).read_text())["names"]
    names = names if len(names) == len(found.films) else [found.name(i) for i in range(len(found.films))]
    pairs = list(zip(found.films, names, strict=True))[:most]
    return [Shown(film.read(range(len(film))), name) for film, name in pairs]
