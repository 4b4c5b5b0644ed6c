"""Fair timing: contenders interleaved round by round in one process, synchronised, medians with their spread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Lap:
    """One contender's times in seconds, or the reason it did not run."""

    median: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    rounds: int = 0
    reason: str = ""


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def once(run: Callable[[], object]) -> float:
    synchronise()
    begin = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - begin


def race(
    contenders: dict[str, Callable[[], object] | str], seconds: float = 6.0, rounds: tuple[int, int] = (5, 50)
) -> dict[str, Lap]:
    """Laps by contender; a contender given as a string is a missing one with its reason.

    Two warm-up calls each, then rounds in which everyone runs once, as many as fit `seconds` within the bounds.
    """
    runners = {name: run for name, run in contenders.items() if not isinstance(run, str)}
    for run in runners.values():
        once(run)
    estimate = sum(once(run) for run in runners.values())
    count = int(min(max(seconds / max(estimate, 1e-9), rounds[0]), rounds[1]))
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(count):
        for name, run in runners.items():
            times[name].append(once(run))
    laps = {name: Lap(statistics.median(t), min(t), max(t), count) for name, t in times.items()}
    return {name: laps.get(name, Lap(reason=str(run))) for name, run in contenders.items()}
