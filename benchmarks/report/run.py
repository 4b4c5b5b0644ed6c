"""Runs the benchmarks and writes their report: results.json, report.md and plots."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import report as results
from benchmarks.report import compare as comparing
from benchmarks.report import markdown, plots

SOURCES = Path(__file__).parents[2]


def bench(
    suites: tuple[str, ...] = (),
    everything: bool = False,
    full: bool = False,
    out: Path | None = None,
    merge: tuple[Path, ...] = (),
    compare: tuple[Path, Path] | None = None,
) -> None:
    """Measures, or merges or compares earlier runs; the arguments are those of `latte-fast bench`."""
    try:
        if compare is not None:
            found = comparing.changes(results.load(compare[0]), results.load(compare[1]))
            print(comparing.table(found))
            raise SystemExit(int(any(change.regressed for change in found)))
        run = results.merged([results.load(path) for path in merge]) if merge else measure(suites, everything, full)
    except ValueError as error:
        raise SystemExit(f"bench: {error}") from None
    write_report(run, out or folder_of(run))


def measure(suites: tuple[str, ...], everything: bool, full: bool) -> results.Results:
    """Runs pytest on the suites and reads the results that it wrote."""
    for name in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"needs {name.replace('_', '-')}: pip install 'latte_fast[test]'")
    folder = SOURCES / "benchmarks"
    known = {path.stem.removeprefix("test_"): path for path in sorted(folder.glob("test_*.py"))}
    unknown = [name for name in suites if name not in known]
    if unknown:
        raise ValueError(f"suites must be of {', '.join(known)}, got {unknown[0]!r}")
    target = folder / ".last.json"
    target.unlink(missing_ok=True)
    select = ["--full"] if full else [] if everything else ["-m", "quick"]
    files = [str(known[name]) for name in suites or known]
    command = [sys.executable, "-m", "pytest", *files, "--benchmark-only", "-q", *select, "--results", str(target)]
    done = subprocess.run([*command, "--benchmark-disable-gc", "-p", "no:cacheprovider"], cwd=SOURCES)
    if not target.is_file():
        raise ValueError(f"nothing was measured: pytest exited with {done.returncode}")
    run = results.load(target)
    target.unlink()
    if done.returncode:
        print(f"bench: pytest exited with {done.returncode}; the report holds what was measured", file=sys.stderr)
    return run


def folder_of(run: results.Results) -> Path:
    name = run.device.partition(", sm_")[0]  # a GPU's alone, not what torch was built for
    device = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return SOURCES / "benchmarks" / "results" / device / f"{run.date}-{run.commit}"


def write_report(run: results.Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results.save(run, folder / "results.json")
    (folder / "report.md").write_text(markdown.report(run))
    made = ["results.json", "report.md"]
    try:
        made += [path.name for path in plots.save_all(run, folder)]
    except RuntimeError as error:
        print(error, file=sys.stderr)
    print(f"{folder}: {', '.join(made)}")
