"""Results that outlive a stopped run: a JSON file a model, in which each figure is kept as soon as it is there."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latte_fast.files import atomic


class OutOfTime(Exception):
    """Raised where another figure would be measured after the time that was given."""


class Store:
    """Figures by name; one that is there is not measured again.

    Args:
        path: file of the figures.
        until: time, as of `time.monotonic`, from which on nothing new is measured.
    """

    def __init__(self, path: Path, until: float = math.inf):
        self.path, self.until = path, until
        self.figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Returns a figure, measured now where it is not kept yet."""
        if name not in self.figures:
            self.check_time()
            self.put(name, measure())
        return self.figures[name]

    def check_time(self) -> None:
        if time.monotonic() >= self.until:
            raise OutOfTime

    def put(self, name: str, value: Any) -> None:
        self.figures[name] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.path) as partial:
            Path(partial).write_text(json.dumps(self.figures, indent=1) + "\n")
        print(f"{self.path.stem}: {name}: {value}", flush=True)

    def below(self, prefix: str) -> dict[str, Any]:
        """Returns the figures whose names begin with a prefix, without it."""
        return {name[len(prefix) :]: value for name, value in self.figures.items() if name.startswith(prefix)}
