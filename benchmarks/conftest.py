"""The fixture behind every benchmark: correctness first, then a race, then pytest-benchmark's own record of ours."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.race import Lap, race
from latte_fast import info

TABLES: list[tuple[str, dict[str, Lap], str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the whole grid instead of the default selection")


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return done.stdout.strip() or "unknown"


@pytest.fixture
def compare(benchmark: Any) -> Callable[..., dict[str, Lap]]:
    """compare(title, contenders, check): runs `check` first (a wrong result is not timed), then races the contenders.

    "ours" is the contender that pytest-benchmark records; the others stand in its extra_info and in the printed table.
    """

    def run(
        title: str,
        contenders: dict[str, Callable[[], object] | str],
        check: Callable[[], None],
        seconds: float = 6.0,
        note: str = "",
    ) -> dict[str, Lap]:
        check()
        laps = race(contenders, seconds)
        ours = contenders["ours"]
        assert callable(ours)
        benchmark.pedantic(ours, rounds=3, warmup_rounds=0)
        benchmark.extra_info.update(
            title=title,
            device=info.gpu() if torch.cuda.is_available() else info.cpu(),
            versions=info.versions(),
            commit=commit(),
            laps={name: lap.__dict__ for name, lap in laps.items()},
            note=note,
        )
        TABLES.append((title, laps, note))
        return laps

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not TABLES:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{'':44} {'median':>10} {'low .. high':>21} {'ours is':>9}")
    for title, laps, note in TABLES:
        write(f"{title}{'  ' + note if note else ''}")
        for name, lap in laps.items():
            if lap.reason:
                write(f"    {name:40} did not run: {lap.reason}")
                continue
            ratio = "" if name == "ours" else f"{lap.median / laps['ours'].median:8.2f}x"
            spread = f"{lap.low * 1e3:.2f} .. {lap.high * 1e3:.2f}"
            write(f"    {name:40} {lap.median * 1e3:7.2f} ms {spread:>21} {ratio:>9}")
