"""Trains on several processes and draws films with all of them; the losses and the films are those of one process.

torchrun --nproc-per-node 2 examples/train_with_torchrun.py FILMS --out runs/films
"""

import argparse
from dataclasses import replace

import latte_fast
from examples.train_on_a_folder import config
from latte_fast.training import Trainer, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", help="folder of films, one subfolder a class")
    parser.add_argument("--out", default="runs/films", help="new folder for the run")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=2000, help="number of updates")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp", help="how the model is spread")
    given = parser.parse_args()
    with start() as ranks:
        run = replace(config(given.films, given.out, given.size, given.steps), parallel=given.parallel)
        Trainer(run, ranks).run()
        latte_fast.sample(given.out, samples=8, steps=20, out=f"{given.out}-samples", ranks=ranks)


if __name__ == "__main__":
    main()
