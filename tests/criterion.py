"""The criterion on many machines' sums: `make test-criterion`, weekly and before a release.

The interpreted kernels take numpy's products, whose sums differ by OpenBLAS's kernels, and the C++ ones' sums differ by
the instruction level. A cell is one such choice and one draw of every test's tensors: the kernels pass and each planted
defect is seen. Prints a line a cell and ends with 1 where one failed.
"""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DRAWS = 3
CORES = ("", "Haswell", "SkylakeX", "Zen", "Prescott")
LEVELS = ("portable", "avx2", "avx512", "avx512bf16", "amx")
# the cells of fp32, where the order of a sum shows, that are interpreted within seconds
SMALL = "planted or (pairs and float32 and not (time and (100 or 33 or 128-64)) and not 80-7-77)"
DOTS = ("tests/kernels/test_axis_attention.py", "tests/kernels/test_planted.py", "-k", SMALL)
# what is left out runs no C++ kernel in this process, or none for the CPU, or is judged by something else
LEFT_OUT = [f"--ignore=tests/ext/test_{name}.py" for name in ("process", "conv_cuda", "conv_emulated")]
CPU = ("tests/ext", "tests/ops", *LEFT_OUT, "-k", "not gradcheck and not opcheck and not compile and not 1024")


class Cell(NamedTuple):
    name: str
    draw: int
    threads: int
    files: tuple[str, ...]
    variable: str
    value: str

    def environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "LATTE_FAST_ISA")}
        env |= {"OMP_NUM_THREADS": str(self.threads), "OPENBLAS_NUM_THREADS": str(self.threads)}
        return env | ({self.variable: self.value} if self.value else {})


def python(cell: Cell, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=cell.environment(), capture_output=True, text=True)


def why_not(cell: Cell) -> str | None:
    """Why this machine can't run a cell."""
    if cell.variable == "OPENBLAS_CORETYPE":
        done = python(cell, "-c", "import numpy; a = numpy.ones((64, 64), 'f'); a @ a")
        if done.returncode == -signal.SIGILL:
            return f"this processor lacks an instruction of OpenBLAS's {cell.value} kernels"
        return None if done.returncode == 0 else done.stderr.strip()[-200:]
    done = python(cell, "-c", "from latte_fast import _ext; print(_ext.load().isa())")
    found = done.stdout.strip() or done.stderr.strip()[-200:]
    return None if found == cell.value else f"this machine or build has {found}"


def run(cell: Cell) -> tuple[bool, str]:
    """(right, what to print of it)."""
    began = time.monotonic()
    options = ("-q", "-p", "no:cacheprovider", "-m", "not slow", f"--draw={cell.draw}")
    done = python(cell, "-m", "pytest", *options, *cell.files)
    lines = done.stdout.strip().splitlines()
    counts = re.sub(r" in .*", "", lines[-1]) if lines else done.stderr[-500:]
    passed = done.returncode == 0 and " passed" in f" {counts}"
    failures = "".join(f"\n    {line}" for line in lines if line.startswith(("FAILED", "ERROR")))
    return passed, f"{'passed' if passed else 'FAILED'}  {counts}, {time.monotonic() - began:.0f} s{failures}"


def cells() -> list[list[Cell]]:
    """Those that one answer of `why_not` speaks for, each group with draws of its own.

    Two names may mean the same kernels (unset, Haswell and Zen on an AMD processor without AVX-512), where the same
    draws would give the same bits.
    """
    found = []
    for variable, values, files in (("OPENBLAS_CORETYPE", CORES, DOTS), ("LATTE_FAST_ISA", LEVELS, CPU)):
        for i, value in enumerate(values):
            draws = range(DRAWS * i, DRAWS * (i + 1))
            found.append([Cell(value or "unset", draw, 1, files, variable, value) for draw in draws])
    found[0].append(found[0][0]._replace(threads=2))
    return found


def main() -> int:
    began, chosen = time.monotonic(), []
    for group in cells():
        reason = why_not(group[0])
        if reason is None:
            chosen += group
        else:
            print(f"{group[0].variable}={group[0].name}: skipped, {reason}", flush=True)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(max(1, cpus)) as pool:
        results = []
        for cell, (right, text) in zip(chosen, pool.map(run, chosen), strict=True):
            name = f"{cell.variable}={cell.name}"
            print(f"{name:<28} draw {cell.draw}  threads {cell.threads}  {text}", flush=True)
            results.append(right)
    took, times = time.monotonic() - began, os.times()
    busy = times.children_user + times.children_system
    print(f"{sum(results)} of {len(results)} cells passed in {took:.0f} s, of {cpus} cores {busy:.0f} s")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
