"""The `latte-fast` command; one file a subcommand."""

from collections.abc import Callable
from typing import Any

import tyro

from latte_fast.cli.bench import bench
from latte_fast.cli.cost import cost
from latte_fast.cli.demo import demo
from latte_fast.cli.doctor import doctor
from latte_fast.cli.encode import encode
from latte_fast.cli.tune import tune


def main() -> None:
    commands: dict[str, Callable[..., Any]] = {
        "doctor": doctor,
        "demo": demo,
        "cost": cost,
        "encode": encode,
        "tune": tune,
        "bench": bench,
    }
    tyro.extras.subcommand_cli_from_dict(commands, prog="latte-fast", description="Fast Latte: check, compare, run.")
