"""Fair timing: contenders interleaved round by round in one process, medians and spread, device apart from host."""

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.clock import Lapper, on_the_device, on_the_wall


@dataclass(frozen=True)
class Lap:
    """One contender's times in seconds, or the reason it did not run; `host` is what queueing a call took the host."""

    median: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    rounds: int = 0
    reason: str = ""
    host: float = 0.0


# what the ceilings are measured on: bytes copied, and the product's (M, N, K)
COPIED = {"cuda": 1 << 30, "cpu": 1 << 27}
PRODUCT = (4096, 3456, 1152)
# every lap of every race, for what a median hides; `--results` keeps them beside the rows
ROUNDS: list[dict[str, list[float]]] = []
# a contender faster than this is called several times a lap, or the clock and a cold start would be what is measured
SHORT = 0.5e-3


def lap(run: Callable[[], object], calls: int = 1) -> float:
    """Seconds a call, on the wall."""
    return on_the_wall(run)(calls).call


def warmed(run: Callable[[], object]) -> Callable[[], object] | str:
    """The contender after a call, or why it can't have one."""
    try:
        lap(run)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
    except Exception as error:  # a compiler that fails costs its own row and no other
        reason = f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
    else:
        return run
    # outside the `except`, whose traceback would hold what was allocated
    torch.cuda.empty_cache()
    return reason


def race(
    contenders: dict[str, Callable[[], object] | str],
    seconds: float = 6.0,
    rounds: tuple[int, int] = (3, 50),
    on_device: bool = False,
) -> dict[str, Lap]:
    """Laps by contender; a contender given as a string is a missing one with its reason.

    A warm-up call each, which shows who does not fit the GPU's memory, then rounds in which everyone runs a lap, as
    many as fit `seconds` within the bounds; a lap has the same number of calls for all. `on_device` leaves the host out
    of a call's time where there is a GPU: kernels are raced so, whole models are not.
    """
    contenders = {name: run if isinstance(run, str) else warmed(run) for name, run in contenders.items()}
    runners = {name: run for name, run in contenders.items() if not isinstance(run, str)}
    calls = max(1, int(SHORT / min(lap(run) for run in runners.values()))) if runners else 1
    clock = on_the_device if on_device and torch.cuda.is_available() else on_the_wall
    lappers: dict[str, Lapper] = {name: clock(run) for name, run in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    hosts: dict[str, list[float]] = {name: [] for name in runners}
    done, spent = 0, 0.0
    while done < rounds[0] or (done < rounds[1] and spent * (done + 1) / done < seconds):
        for name, lapper in lappers.items():
            took = lapper(calls)
            times[name].append(took.call)
            hosts[name].append(took.host)
        done, spent = done + 1, calls * sum(max(c, h) for n in times for c, h in zip(times[n], hosts[n], strict=True))
    ROUNDS.append(times)
    laps = {
        name: Lap(statistics.median(t), min(t), max(t), done, host=statistics.median(hosts[name]))
        for name, t in times.items()
    }
    return {name: laps.get(name, Lap(reason=str(run))) for name, run in contenders.items()}


@functools.cache
def ceilings() -> dict[str, float]:
    """What this machine does at best, measured once a run: bytes copied (in and out) and bf16 GEMM flops, a second.

    The GEMM is Latte-XL/2's second-widest, 4096 x 1152 x 3456; the copy is of what no cache holds, by memcpy or by a
    kernel that writes each value's negative, whichever is faster: on an H100 memcpy is the slower.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    m, n, k = PRODUCT
    x, w = (torch.randn(rows, k, device=device).bfloat16() for rows in (m, n))
    out = x.new_empty(m, n)
    values, negatives = source.view(torch.bfloat16), target.view(torch.bfloat16)
    runs = {
        "copy": lambda: target.copy_(source),
        "negative": lambda: torch.neg(values, out=negatives),
        "gemm": lambda: torch.mm(x, w.t(), out=out),
    }
    laps = race(runs, seconds=1.5, on_device=True)
    copied = min(laps["copy"].median, laps["negative"].median)
    return {"copy": 2 * source.numel() / copied, "gemm": 2 * m * n * k / laps["gemm"].median}
