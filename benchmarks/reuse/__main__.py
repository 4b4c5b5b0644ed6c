"""Prints what plans save and lose on trained models, beside hand-made masks, fewer steps and published rules.

python -m benchmarks.reuse RUN [RUN ...]              all parts, one after the other
python -m benchmarks.reuse RUN --part seconds         seconds end to end, PSNR, and the share that is recognised
python -m benchmarks.reuse RUN --part budgets         PSNR by number of forwards, beside the best mask made by hand
python -m benchmarks.reuse RUN --part contenders      published rules at equal computed forwards
python -m benchmarks.reuse RUN --part samplers        distance to one converged film, beside fewer steps of others

Plans that lie beside a run are used; where there are none, they are searched first. Every figure is kept in OUT as
soon as it is there, so that the same command goes on where it was stopped; the table and its curves are written anew
at the end of each part.
"""

import argparse
import contextlib
import math
import time
from pathlib import Path

import torch

from benchmarks.reuse.parts import Parts
from benchmarks.reuse.store import OutOfTime, Store
from benchmarks.reuse.tables import write_tables

PARTS = ("plans", "budgets", "seconds", "contenders", "samplers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs on moving shapes")
    parser.add_argument("--part", choices=PARTS, nargs="*", default=PARTS, help="parts of the table")
    parser.add_argument("--out", type=Path, default=Path("reuse"), help="folder of the figures, the table and curves")
    parser.add_argument("--batch", type=int, default=64, help="number of films drawn in one batch for the seconds")
    parser.add_argument("--samples", type=int, default=16, help="samples that losses are measured on")
    parser.add_argument("--budgets", type=int, nargs="*", default=range(8, 26), help="numbers of forwards")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the seconds are the medians")
    parser.add_argument("--threads", type=int, help="number of torch's threads")
    parser.add_argument("--device", default="cpu", help="device of the models")
    parser.add_argument("--seconds", type=float, default=math.inf, help="time after which nothing new is measured")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    until = time.monotonic() + given.seconds
    stores = [Store(given.out / f"{run.name}.json", until) for run in given.runs]
    all_parts = [Parts(run, store, given) for run, store in zip(given.runs, stores, strict=True)]
    with contextlib.suppress(OutOfTime):
        for part in given.part:
            for parts in all_parts:
                getattr(parts, part)()
            write_tables(given.out, stores)
    write_tables(given.out, stores)
    print((given.out / "reuse.md").read_text())


if __name__ == "__main__":
    main()
