"""The subcommands and their order in --help."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from latte_fast.cli.bench import bench
from latte_fast.cli.cost import cost
from latte_fast.cli.demo import demo
from latte_fast.cli.doctor import doctor
from latte_fast.cli.encode import encode
from latte_fast.cli.encode_text import encode_text
from latte_fast.cli.plot import plot
from latte_fast.cli.sample import sample
from latte_fast.cli.train import train_command
from latte_fast.cli.tune import tune


def commands(argv: list[str]) -> dict[str, Callable[..., Any]]:
    return {
        "doctor": doctor,
        "demo": demo,
        "encode": encode,
        "encode-text": encode_text,
        "train": train_command(argv),
        "sample": sample,
        "plot": plot,
        "cost": cost,
        "tune": tune,
        "bench": bench,
    }


def run() -> None:
    known = commands(sys.argv[1:])
    tyro.extras.subcommand_cli_from_dict(known, prog="latte-fast", description="Fast Latte: check, compare, run.")
