"""One benchmark run as data: the machine, then a row per contender. A file appears whole or not at all."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latte_fast.files import atomic

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One contender of one race, in seconds; or the reason it did not run."""

    suite: str
    title: str
    contender: str
    median: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    rounds: int = 0
    reason: str = ""
    bytes: int = 0  # bytes that have to be moved, where a bandwidth makes sense
    flops: int = 0  # operations that have to be done, where a rate makes sense
    peak_bytes: int = 0  # most bytes live at once besides the weights, where counted
    kept_bytes: int = 0  # bytes kept by a forward for its backward, where counted
    note: str = ""
    host: float = 0.0  # seconds the host took to queue a call, where it was timed
    # a point on a curve: the name of the curve and of its axis, and the place on it
    curve: str = ""
    axis: str = ""
    at: float = 0.0

    @property
    def ran(self) -> bool:
        return not self.reason

    @property
    def timed(self) -> bool:
        return self.ran and self.median == self.median

    @property
    def noise(self) -> float:
        """The largest distance of a round from the median, as a share of the median."""
        return max(self.high - self.median, self.median - self.low) / self.median if self.timed else 0.0


@dataclass(frozen=True)
class Results:
    """A run: device, date, commit and versions, the ceilings measured in it, and its rows."""

    device: str
    date: str
    commit: str
    versions: dict[str, str]
    ceilings: dict[str, float] = field(default_factory=dict)  # bytes and flops a second
    rows: tuple[Row, ...] = ()

    def races(self) -> Iterator[tuple[tuple[str, str], dict[str, Row]]]:
        """Yields ((suite, title), rows by contender), in the order they ran."""
        found: dict[tuple[str, str], dict[str, Row]] = {}
        for row in self.rows:
            found.setdefault((row.suite, row.title), {})[row.contender] = row
        yield from found.items()


def save(results: Results, path: Path) -> None:
    with atomic(path) as partial:
        partial.write_text(json.dumps({"format": FORMAT} | asdict(results), indent=1) + "\n")


def load(path: Path | str) -> Results:
    """Reads the results of a file; raises a ValueError that names what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        rows = tuple(Row(**row) for row in content.pop("rows"))
        return Results(**content, rows=rows)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not a results file of this version: {error}") from error


def merged(parts: list[Results]) -> Results:
    """Merges runs of one machine and commit; a row that several parts have comes from the last of them."""
    last = parts[-1]
    for part in parts:
        if (part.device, part.commit) != (last.device, last.commit):
            ours, theirs = (last.device, last.commit), (part.device, part.commit)
            raise ValueError(f"results: parts must come from one machine and commit, got {ours} and {theirs}")
    kept: dict[tuple[str, str, str], Row] = {}
    for part in parts:
        kept |= {(row.suite, row.title, row.contender): row for row in part.rows}
    ceilings = {k: v for part in parts for k, v in part.ceilings.items()}
    return Results(last.device, last.date, last.commit, last.versions, ceilings, tuple(kept.values()))
