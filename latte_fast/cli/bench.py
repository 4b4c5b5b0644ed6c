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
        suites: of benchmarks/test_*.py by name: ops, block, model, training, t2v, memory, scaling, ...; none is all.
        everything: the default selection of those suites instead of the quick one.
        full: the whole grid; hours on a CPU.
        out: a folder, by default benchmarks/results/<device>/<date>-<commit>; what is there is replaced.
        merge: results files of one machine and commit to report as one, without running anything.
        compare: two results files, before and after; exits 1 where ours got slower by more than the noise.
    """
    if not (SOURCES / "benchmarks" / "report").is_dir():
        raise SystemExit(f"bench: the benchmarks are part of the sources, and {SOURCES} has none; pip install -e .")
    sys.path.insert(0, str(SOURCES))
    from benchmarks.report.run import bench as work

    work(suites, everything, full, out, merge, compare)
