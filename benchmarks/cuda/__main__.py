"""python -m benchmarks.cuda [stage ...], or merge ARCHIVE; see benchmarks/cuda.sh."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.commit import commit
from benchmarks.cuda.archive import Refused
from benchmarks.cuda.plan import chosen, plan
from benchmarks.cuda.run import ROOT, Day, run

BEGAN = time.monotonic()
PROBE = """
import torch
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), *torch.cuda.get_device_capability(), sep="\\n")
"""


def device(python: str) -> str:
    """The GPU's name; what is built is for it alone, which takes a third of the time."""
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    found = done.stdout.split("\n")
    if done.returncode or not found[0]:
        reason = done.stderr.strip().splitlines()[-1:] or ["torch sees no GPU"]
        raise Refused(f"{python}: {reason[0]}; DRY=1 tries the stages without one")
    arch = found[1] + found[2]
    os.environ.setdefault("LATTE_FAST_CUDA_ARCHS", "90a" if arch == "90" else arch)
    os.environ.setdefault("LATTE_FAST_CUDA", "1")
    return found[0]


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    try:
        if arguments[:1] == ["merge"]:
            from benchmarks.cuda.merge import merge

            if len(arguments) != 2:
                raise Refused("merge: needs ARCHIVE=path")
            return merge(Path(arguments[1]))
        dry, python = os.environ.get("DRY", "0") == "1", os.environ.get("PYTHON", sys.executable)
        stages = chosen(plan(dry), arguments)
        deadline = float(os.environ.get("DEADLINE", "560"))
        given = os.environ.get("ARCHIVE")
        day = Day(
            stages,
            commit=commit(),
            device="dry" if dry else device(python),
            out=Path(os.environ.get("OUT", "cuda-out")),
            archive=Path(given) if given else None,
            deadline=deadline,
            python=python,
            named=bool(arguments),
            began=BEGAN,
        )
        return run(day)
    except (Refused, ValueError) as error:
        print(f"cuda: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
