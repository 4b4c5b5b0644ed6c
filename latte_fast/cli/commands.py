"""The subcommands and their order in --help."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from latte_fast.cli.bench import bench
from latte_fast.cli.convert import convert
from latte_fast.cli.cost import cost
from latte_fast.cli.demo import demo
from latte_fast.cli.doctor import doctor
from latte_fast.cli.encode import encode
from latte_fast.cli.encode_text import encode_text
from latte_fast.cli.evaluate import evaluate
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
        "evaluate": evaluate,
        "convert": convert,
        "plot": plot,
        "cost": cost,
        "tune": tune,
        "bench": bench,
    }


def ending_in_one_line() -> ConstructorRegistry:
    """Dataclasses made from arguments: what one refuses ends the command with its message, without tyro's frame."""
    registry = ConstructorRegistry()
    asking: list[type] = []

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type) or info.type in asking:
            return None
        asking.append(info.type)
        try:
            spec = ConstructorRegistry.get_struct_spec(info)  # by tyro's own rule
        finally:
            asking.pop()
        if not isinstance(spec, StructConstructorSpec):
            return None
        make = spec.instantiate

        @functools.wraps(make)
        def instantiate(**kwargs: Any) -> Any:
            try:
                return make(**kwargs)
            except ValueError as error:
                raise SystemExit(str(error)) from None

        return dataclasses.replace(spec, instantiate=instantiate)

    return registry


def run() -> None:
    known = commands(sys.argv[1:])
    about = "Fast Latte: check, compare, run. --version alone prints the version."
    with ending_in_one_line():
        tyro.extras.subcommand_cli_from_dict(known, prog="latte-fast", description=about)
