"""All that must be right before anything is timed, side by side on one GPU, as nothing here is measured.

python -m benchmarks.cuda.checks FOLDER [--seconds N] [--tiny]    # a log each in FOLDER, and a line of how each ended

The kernels' tests under xdist where it is installed, under compute-sanitizer, the models of every family, and one call
of each contender of the races that need a compiler, which fills its caches for them.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.cuda.plan import PYTEST, RACES
from benchmarks.cuda.shards import SHARDS, sanitized

LAST = re.compile(r"passed|failed|skipped|error|right|WRONG", re.IGNORECASE)


def commands(tiny: bool) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name -> (arguments of Python, environment)."""
    small = ["--tiny"] if tiny else []
    spread = ["-n", "8", "--dist", "worksteal"] if find_spec("xdist") and not tiny else []
    found: dict[str, tuple[list[str], dict[str, str]]] = {
        "families": (["-m", "benchmarks.cuda.families", *small], {}),
        "tests": ([*PYTEST, *SHARDS, "-m", "cuda and not slow", *spread], {}),
    }
    for name, (suites, only) in RACES.items():
        files = [f"benchmarks/test_{suite}.py" for suite in suites]
        found[f"warm-{name}"] = ([*PYTEST, *files, "--benchmark-only", "--warm", "-k", only, *small], {})
    return found


def main(folder: Path, seconds: float, tiny: bool) -> int:
    """1 where something failed; what runs after `seconds` is ended, and said to be cut."""
    folder.mkdir(parents=True, exist_ok=True)
    began, running = time.monotonic(), {}
    every = {name: ([sys.executable, *args], env) for name, (args, env) in commands(tiny).items()}
    for name, (command, env) in (every | ({} if tiny else sanitized("memcheck"))).items():
        with (folder / f"{name}.log").open("wb") as log:
            running[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | env, start_new_session=True
            )
    failed = 0
    ended: dict[str, str] = {}
    while len(ended) < len(running):
        late = time.monotonic() - began > seconds
        for name, child in running.items():
            if name in ended:
                continue
            code = child.poll()
            if code is None and late:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                ended[name] = "cut"
            elif code is not None:
                ended[name] = "passed" if code in (0, 5) else f"FAILED ({code})"
                failed += ended[name] != "passed"
            if name in ended:
                lines = (folder / f"{name}.log").read_text(errors="replace").splitlines()
                telling = [line for line in lines if LAST.search(line)][-1:] or lines[-1:]
                print(
                    f"{time.monotonic() - began:5.0f} s  {name}: {ended[name]}  {' '.join(telling)[:200]}", flush=True
                )
        time.sleep(0.2)
    return int(failed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=170.0, help="what is still running then is ended")
    parser.add_argument("--tiny", action="store_true", help="at tiny sizes, to try everything on a CPU")
    given = parser.parse_args()
    sys.exit(main(given.folder, given.seconds, given.tiny))
