"""Fixtures of every benchmark: first a check of correctness, then a race, then the record that reports are made from.

A CPU runs the default selection in ten minutes; `-m quick` is a part of it, `--full` the whole grid.
"""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import contenders
from benchmarks.commit import commit
from benchmarks.race import ROUNDS, Lap, ceilings, race
from benchmarks.report import Results, Row, load, save
from benchmarks.report.markdown import remark
from latte_fast import info

ROWS: list[Row] = []
DONE: list[str] = []  # names of tests whose rows are in the file


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the whole grid instead of the default selection")
    parser.addoption("--tiny", action="store_true", help="run everything at tiny sizes, whose times mean nothing")
    parser.addoption("--results", metavar="FILE", help="write every row to this JSON file, after every test")
    parser.addoption("--warm", action="store_true", help="call every contender once, for what compilers cache; no race")
    parser.addoption("--resume", action="store_true", help="skip tests that --results has of an interrupted run")


def pytest_configure(config: pytest.Config) -> None:
    # by default cuDNN rounds fp32 to TF32: the oracle's patches would be 5e-4 off, where a gate allows 6e-6
    torch.backends.cudnn.allow_tf32 = False
    if config.getoption("--tiny"):
        contenders.shrink()
    config.addinivalue_line("markers", "full: runs only with --full")
    config.addinivalue_line("markers", "quick: a part of the default selection that takes a few minutes on a CPU")
    path = results_file(config)
    if path and config.getoption("--resume") and path.is_file() and done_file(path).is_file():
        before = load(path)
        if (before.device, before.commit) == (device_name(), commit()):
            ROWS.extend(before.rows)
            DONE.extend(done_file(path).read_text().splitlines())
            if rounds_file(path).is_file():
                ROUNDS.extend(json.loads(rounds_file(path).read_text()))


def results_file(config: pytest.Config) -> Path | None:
    name = config.getoption("--results")
    return Path(name) if name else None


def done_file(results: Path) -> Path:
    """Returns the path of the file that names the tests whose rows are in a results file."""
    return results.with_suffix(".tests")


def rounds_file(results: Path) -> Path:
    """Every lap behind a results file's medians."""
    return results.with_suffix(".rounds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    full = config.getoption("--full")
    dropped = [item for item in items if item.nodeid in DONE or (item.get_closest_marker("full") and not full)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    """Saves the rows so far, so that an interrupted run does not lose them."""
    report = yield
    path = results_file(item.config)
    if path and ROWS and report.when == "call" and report.passed:
        DONE.append(item.nodeid)
        save(collected(), path)
        done_file(path).write_text("".join(f"{name}\n" for name in DONE))
        rounds_file(path).write_text(json.dumps(ROUNDS))
    return report


def device_name() -> str:
    return info.gpu() if torch.cuda.is_available() else info.cpu()


def collected() -> Results:
    day = datetime.date.today().isoformat()
    return Results(device_name(), day, commit(), info.versions(), ceilings(), tuple(ROWS))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., Row]:
    """Gives record(title, contender, **fields of a Row), which adds a row to the suite of this file."""

    def keep(title: str, contender: str, **fields: Any) -> Row:
        suite = Path(str(request.node.fspath)).stem.removeprefix("test_")
        ROWS.append(Row(suite, title, contender, **fields))
        return ROWS[-1]

    return keep


def warm(contenders: dict[str, Callable[[], object] | str]) -> str:
    """Calls each once; what was raised, by contender."""
    outcomes = []
    for name, run in contenders.items():
        if callable(run):
            try:
                run()
            except Exception as error:
                outcomes.append(f"{name}: {(str(error).strip() or repr(error)).splitlines()[0]}")
    return "; ".join(outcomes) or "all ran"


@pytest.fixture
def compare(
    request: pytest.FixtureRequest, benchmark: Any, record: Callable[..., Row]
) -> Callable[..., dict[str, Lap]]:
    """Gives compare(title, contenders, check): runs `check`, as no wrong result is timed, then races the contenders.

    "ours" is the contender that pytest-benchmark records; every contender becomes a row. `on_device` times the GPU
    apart from the host. `fields` go into all rows, `each` into the rows of the contenders that it names.
    """

    def run(
        title: str,
        contenders: dict[str, Callable[[], object] | str],
        check: Callable[[], None],
        seconds: float = 6.0,
        on_device: bool = False,
        rounds: tuple[int, int] = (3, 50),
        each: dict[str, dict[str, Any]] | None = None,
        **fields: Any,
    ) -> dict[str, Lap]:
        if request.config.getoption("--warm"):
            pytest.skip(f"called once: {warm(contenders)}")
        check()
        laps = race(contenders, seconds, rounds, on_device)
        ours = laps["ours"]
        assert not ours.reason, f"ours did not run: {ours.reason}"
        benchmark.pedantic(lambda: None, rounds=1)  # makes the row that the race's time goes into
        benchmark.stats.stats.data[:] = [ours.median]
        for name, lap in laps.items():
            record(title, name, **lap.__dict__, **fields, **(each or {}).get(name, {}))
        benchmark.extra_info.update(title=title, laps={name: lap.__dict__ for name, lap in laps.items()}, **fields)
        return laps

    return run


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path = results_file(session.config)
    if path and ROWS:
        save(collected(), path)
    if DONE and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK  # an earlier run has measured everything


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    write, results = terminalreporter.write_line, collected()
    rates = ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in results.ceilings.items())
    write(f"\n{results.device}; ceilings of this run: {rates}")
    write(f"{'':48} {'median':>10} {'low .. high':>21} {'times ours':>10} {'kept':>9} {'peak':>9}")
    for (suite, title), rows in results.races():
        write(f"{suite}: {title}")
        for name, row in rows.items():
            if not row.ran:
                write(f"    {name:44} did not run: {row.reason}")
                continue
            ours = rows.get("ours")
            ratio = f"{row.median / ours.median:9.2f}x" if ours and ours.timed and row.timed and row is not ours else ""
            time = f"{row.median * 1e3:7.2f} ms" if row.timed else ""
            spread = f"{row.low * 1e3:.2f} .. {row.high * 1e3:.2f}" if row.timed else ""
            sizes = [f"{size / 1e6:6.0f} MB" if size else "" for size in (row.kept_bytes, row.peak_bytes)]
            write(f"    {name:44} {time:>10} {spread:>21} {ratio:>10} {sizes[0]:>9} {sizes[1]:>9}  {remark(row)}")
