"""latte-fast train."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from latte_fast.cli.endings import sentence
from latte_fast.data.item import DataError
from latte_fast.media.video import VideoError
from latte_fast.training import TrainConfig, Trainer, read_config, start
from latte_fast.training.folder import writing
from latte_fast.training.setup import CONFIG


def command(args: list[str]) -> Callable[..., None]:
    """Returns the command; its defaults are those of --config's YAML, or without it of the run to resume."""
    default = TrainConfig()
    path = _option(args, "--config")
    run = Path(_option(args, "--out") or default.out)
    resumed = path is None and "--resume" in args and (run / CONFIG).is_file()
    if resumed:
        path = str(run / CONFIG)
    if path is not None:
        try:
            default = read_config(path, TrainConfig)
            if resumed:
                # the folder may have been moved since the run began
                default = replace(default, out=str(run))
        except ValueError as error:
            raise SystemExit(sentence(error, "train")) from None

    def train(
        settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = default,
        config: str | None = None,
        resume: bool = False,
        flex: str | None = None,
    ) -> None:
        """Train a Latte on one process, or on several under torchrun.

        Args:
            config: YAML file with defaults for all options below; docs/training.md shows one.
            resume: go on with the run in the folder `out`, or start it where there is none.
            flex: short for --model.layout: FlexDiT's layout of blocks, or auto for the default of the depth.
        """
        if flex is not None:
            settings = replace(settings, model=replace(settings.model, layout=flex))
        try:
            with start() as ranks, writing(Path(settings.out), ranks):
                Trainer(settings, ranks, resume, say=lambda text: print(text, file=sys.stderr)).run()
        except (VideoError, DataError) as error:
            # an error in a loader worker has its traceback before the message
            said = str(error).strip().splitlines()[-1]
            raise SystemExit(f"train: {said.rpartition('Error: ')[2]}") from None
        except (ValueError, RuntimeError, FloatingPointError) as error:
            raise SystemExit(sentence(error, "train")) from None

    return train


def _option(args: list[str], name: str) -> str | None:
    """Returns the value of --name x or --name=x, or None."""
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(name + "="):
            return arg.removeprefix(name + "=")
    return None
