"""Fair timing: contenders interleaved round by round in one process, synchronised, medians with their spread."""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Lap:
    """The times of one contender in seconds, or the reason it did not run."""

    median: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    rounds: int = 0
    reason: str = ""


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# contenders faster than this many seconds are called several times a lap, or the clock itself would be measured
SHORT = 0.5e-3


def lap(run: Callable[[], object], calls: int = 1) -> float:
    """Returns seconds per call."""
    synchronise()
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    synchronise()
    return (time.perf_counter() - begin) / calls


def warmed(run: Callable[[], object]) -> Callable[[], object] | str:
    """Calls a contender once; returns it, or the reason if it does not fit the GPU's memory."""
    try:
        lap(run)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
    else:
        return run
    # outside the `except`, whose traceback would hold what was allocated
    torch.cuda.empty_cache()
    return reason


def race(
    contenders: dict[str, Callable[[], object] | str], seconds: float = 6.0, rounds: tuple[int, int] = (3, 50)
) -> dict[str, Lap]:
    """Times contenders round by round; one given as a string does not run, and the string is the reason.

    After a warm-up call, which shows who does not fit the GPU's memory, every contender runs one lap a round, with the
    same number of calls for all; the number of rounds is what fits `seconds`, within the bounds.
    """
    contenders = {name: run if isinstance(run, str) else warmed(run) for name, run in contenders.items()}
    runners = {name: run for name, run in contenders.items() if not isinstance(run, str)}
    calls = max(1, int(SHORT / min(lap(run) for run in runners.values()))) if runners else 1
    times: dict[str, list[float]] = {name: [] for name in runners}
    done, spent = 0, 0.0
    while done < rounds[0] or (done < rounds[1] and spent * (done + 1) / done < seconds):
        for name, run in runners.items():
            times[name].append(lap(run, calls))
        done, spent = done + 1, calls * sum(sum(t) for t in times.values())
    laps = {name: Lap(statistics.median(t), min(t), max(t), done) for name, t in times.items()}
    return {name: laps.get(name, Lap(reason=str(run))) for name, run in contenders.items()}


@functools.cache
def ceilings() -> dict[str, float]:
    """Measures, once per run, what this machine does at best per second: bytes copied (in and out), bf16 GEMM flops.

    The GEMM is Latte-XL/2's second-widest, 4096 x 1152 x 3456; the copy is larger than any cache.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = torch.empty((1 << 30) if device.type == "cuda" else (1 << 27), dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    x, w = (torch.randn(n, 1152, device=device).bfloat16() for n in (4096, 3456))
    out = x.new_empty(4096, 3456)
    laps = race({"copy": lambda: target.copy_(source), "gemm": lambda: torch.mm(x, w.t(), out=out)}, seconds=1.5)
    return {"copy": 2 * source.numel() / laps["copy"].median, "gemm": 2 * 4096 * 1152 * 3456 / laps["gemm"].median}
