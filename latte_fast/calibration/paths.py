"""Which steps are computed, and how the stretches between them are reused; masks that need no search."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

ORDERS = (0, 1, 2)
EVERY = (1, 2, 3, 0)
FARTHEST = 3  # steps that a computed step is moved at once

Marks = str  # a letter a step, as `latte_fast.runs.plan.mark` says


class Stretch(NamedTuple):
    """How the steps after a computed one are reused."""

    order: int = 1  # of the extrapolation
    # the model's two ends are called at every such step, 0 at none; between, the newest prediction is repeated
    every: int = 2


Path = dict[int, Stretch]  # computed steps, each with how the stretch after it is reused


def marks_of(count: int, path: Path) -> Marks:
    """Returns a path as marks of so many steps."""
    out, since, computed = [], 0, 0
    stretch = Stretch()
    for i in range(count):
        if i in path:
            stretch, since, computed = path[i], 0, computed + 1
            out.append("C")
        else:
            out.append("-" if not stretch.every or since % stretch.every else str(min(stretch.order, computed - 1)))
            since += 1
    return "".join(out)


def hand_made(count: int, computed: int) -> dict[str, list[int]]:
    """Returns masks that need no search: computed steps even, dense early, dense late (u -> 1 - (1 - u)^1.5)."""
    shapes: dict[str, Callable[[float], float]] = {
        "even": lambda u: u,
        "early-dense": lambda u: u**1.5,
        "late-dense": lambda u: 1 - (1 - u) ** 1.5,
    }
    out = {}
    for name, shape in shapes.items():
        steps = sorted({round((count - 1) * shape(i / (computed - 1))) for i in range(computed)})
        free = itertools.filterfalse(set(steps).__contains__, range(count))
        while len(steps) < computed:  # two rounded to one
            steps = sorted([*steps, next(free)])
        out[name] = steps
    return out


def dense_late(count: int, computed: int, exponent: float, first: int = 0) -> list[int]:
    """Returns computed steps denser late: u -> 1 - (1 - u)^exponent, after a first stretch of a given length."""
    last = count - 1
    begin = min(first, last - 1)
    left = computed - 1 if begin else computed
    if left < 2:
        return [0, last]
    steps = {begin + round((last - begin) * (1 - (1 - i / (left - 1)) ** exponent)) for i in range(left)} | {0, last}
    for step in range(last, 0, -1):  # two were rounded to one
        if len(steps) >= computed:
            break
        steps.add(step)
    return sorted(steps)


def neighbours(path: Path, count: int, every: Sequence[int] = EVERY) -> Iterator[Path]:
    """Yields the paths that differ in one computed step, or in how one stretch is reused."""
    steps = sorted(path)
    for i in steps[1:-1]:
        rest = {at: stretch for at, stretch in path.items() if at != i}
        for to in range(max(1, i - FARTHEST), min(count - 1, i + FARTHEST + 1)):
            if to not in path:
                yield {**rest, to: path[i]}
        for before, after in itertools.pairwise(steps):
            middle = (before + after) // 2
            if middle not in path and i not in (before, after):
                yield {**rest, middle: path[before]}
    for i, after in itertools.pairwise(steps):
        for order, number in itertools.product(ORDERS, every):
            if after > i + 1 and (order, number) != path[i] and (number == 1 or number < after - i):
                yield {**path, i: Stretch(order, number)}


def stretched(steps: Sequence[int], order: int = 1, every: int = 2) -> Path:
    """Returns the path of computed steps whose stretches are all reused alike."""
    return dict.fromkeys(steps, Stretch(order, every))


def fewest_computed(steps: int) -> int:
    """Returns the least number of computed steps that a search goes down to."""
    return max(3, math.ceil((steps - 1) / 9) + 1)
