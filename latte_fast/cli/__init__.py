"""The `latte-fast` command; one file a subcommand."""

import sys

import tyro

from latte_fast.cli.cost import cost
from latte_fast.cli.demo import demo
from latte_fast.cli.doctor import doctor
from latte_fast.cli.plot import plot
from latte_fast.cli.sample import sample
from latte_fast.cli.train import train_command
from latte_fast.cli.tune import tune


def main() -> None:
    commands = {
        "doctor": doctor,
        "demo": demo,
        "train": train_command(sys.argv[1:]),
        "sample": sample,
        "plot": plot,
        "cost": cost,
        "tune": tune,
    }
    tyro.extras.subcommand_cli_from_dict(commands, prog="latte-fast", description="Fast Latte: check, compare, run.")
