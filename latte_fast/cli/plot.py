"""latte-fast plot."""

from typing import Annotated

import tyro

from latte_fast.cli.endings import sentence
from latte_fast.runs.plot import plot_run


def plot(run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")], out: str | None = None) -> None:
    """Draw a run's loss, learning rate, throughput and gradient norm.

    Args:
        run: folder of the run.
        out: file of the picture, .png, .pdf, .svg, ...; by default curves.png in the run's folder.
    """
    try:
        print(plot_run(run, out))
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(sentence(error, "plot")) from None
