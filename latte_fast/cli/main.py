"""Runs the command that the first argument names, and imports the module of no other command."""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from latte_fast import __version__
from latte_fast.cli.endings import in_one_line, sentence

# in the order of --help; each has a file in this folder, with a function of its name or `command`, which makes one
COMMANDS = {
    "doctor": "print what this machine has, which backend serves each op, and why the others do not",
    "demo": "compare the fast model with the oracle, train a small Latte on moving shapes, judge its samples",
    "encode": "write the latents or tokens of a set of videos, so that training needs neither codec nor videos",
    "decode": "write the films of tokens, of any length in bounded memory",
    "encode-text": "write the embeddings of captions, so that text-to-video training needs no text encoder",
    "encode-audio": "write the tokens of sounds, which a token transformer is given as its condition",
    "train": "train a Latte on a folder of clips, on one process or many",
    "sample": "draw films from a trained model, or from text",
    "calibrate": "search plans that compute fewer steps of a model's sampling, at a known loss",
    "plan": "print what a plan computes and what it reuses",
    "evaluate": "measure samples: distances from a real set, scores of pairs, over time",
    "convert": "write a model's weights as upstream's scripts or diffusers read them",
    "quantize": "write a run's weights in 8 bits, rounded for what its layers see",
    "plot": "draw a run's loss, learning rate, throughput and gradient norm",
    "report": "write a run's page: playing films, curves, configuration, speed, machine",
    "cost": "print multiply-adds, bytes and a lower bound of the time of a model's forward",
    "tune": "measure the GPU kernels' tiles on this machine and keep the fastest",
    "bench": "race the fast model against the oracle, torch.compile and diffusers",
}
USAGE = """usage: latte-fast COMMAND [options]

Train and sample Latte, the latent diffusion transformer for video, and check that it is fast and right here.

commands:
{commands}

`latte-fast COMMAND --help` explains a command and its options; `latte-fast --version` prints the version."""


def main() -> None:
    args = sys.argv[1:]
    if args[:1] == ["--version"]:
        print(f"latte_fast {__version__}")
        return
    if not args or args[0] in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {name:12} {about}" for name, about in COMMANDS.items())))
        raise SystemExit(0 if args else 2)
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        raise SystemExit(f"latte-fast: command must be one of {', '.join(COMMANDS)}, got {name!r}")
    with in_one_line(name):
        call(name, rest)


def call(name: str, rest: list[str]) -> None:
    """Imports a command's module and runs it."""
    function = name.replace("-", "_")
    try:
        module = importlib.import_module(f"latte_fast.cli.{function}")
        if name == "doctor" and not rest:
            module.doctor()
            return
        # train builds its function from the arguments, as a file may hold the defaults of its options
        command = module.command(rest) if hasattr(module, "command") else getattr(module, function)
        run(command, f"latte-fast {name}", rest)
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        raise SystemExit("latte-fast: the options of commands need tyro: pip install tyro") from None


def run(command: Callable[..., Any], prog: str, args: list[str]) -> None:
    """Calls a function with its parameters read from command-line arguments."""
    import tyro
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

    registry = ConstructorRegistry()
    asking: list[type] = []

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        """Builds dataclasses from arguments; a ValueError ends the command with its message, without tyro's frame."""
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
                raise SystemExit(sentence(error, prog.split()[-1])) from None

        return dataclasses.replace(spec, instantiate=instantiate)

    with registry:
        tyro.cli(command, prog=prog, args=args)
