"""latte-fast bench."""

import sys
from pathlib import Path

import latte_fast

SOURCES = Path(latte_fast.__file__).parents[1]


def bench(
    suites: tuple[str, ...] = (),
    everything: bool = False,
    full: bool = False,
    out: Path | None = None,
    merge: tuple[Path, ...] = (),
    compare: tuple[Path, Path] | None = None,
) -> None:
    """Race the fast model against the oracle, torch.compile and diffusers; write results.json, report.md and plots.

    Without options it runs the quick selection, a few minutes on a CPU. `pytest benchmarks/ --benchmark-only` runs what
    --everything runs, without the report.

    Args:
        suites: names of suites (benchmarks/test_*.py): ops, block, model, training, t2v, memory, ...; by default all.
        everything: run the suites' default selection instead of the quick one.
        full: run the whole grid of cases, which takes hours on a CPU.
        out: folder of the report, by default benchmarks/results/<device>/<date>-<commit>; files in it are replaced.
        merge: results files of one machine and commit to combine in one report, without running anything.
        compare: two results files, before and after; exits with 1 if the fast model got slower by more than the noise.
    """
    if not (SOURCES / "benchmarks" / "report").is_dir():
        raise SystemExit(f"bench: the benchmarks are part of the sources, and {SOURCES} has none; pip install -e .")
    sys.path.insert(0, str(SOURCES))
    from benchmarks.report.run import bench as work

    work(suites, everything, full, out, merge, compare)
