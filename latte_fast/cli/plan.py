"""latte-fast plan."""

from pathlib import Path
from typing import Annotated

import tyro

from latte_fast.cli.endings import sentence
from latte_fast.runs.plan import load_plan


def plan(file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]) -> None:
    """Print what a plan computes and what it reuses, a line a step.

    Args:
        file: plan that `latte-fast calibrate` wrote.
    """
    try:
        print(load_plan(file).table())
    except (ValueError, OSError) as error:
        raise SystemExit(sentence(error, "plan")) from None
