"""What a call takes: on the host, from the clock on the wall; on a GPU, between events that the host's time is not in.

A kernel of 20 us takes Python 30 us to launch, so a wall clock around a few calls reads the host. Where a call can be
captured, as many as a lap has become one CUDA graph and the events lie around its replay; where it can't, around the
calls. Either way the GPU is kept busy first, for longer than the host needs to queue the lap.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

# what the GPU is kept busy for, as a multiple of what the host needed to queue the lap
HEADSTART = 2.0
LEAST = 100e-6  # seconds; a replay is one launch, but of many kernels
CLOCK_RATE = 2.0e9  # at most; a lower one only makes the wait longer


class Seconds(NamedTuple):
    """Of one call: on the device (on the host, where there is no device to ask), and to queue it from the host."""

    call: float
    host: float


Lapper = Callable[[int], Seconds]


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def on_the_wall(run: Callable[[], object]) -> Lapper:
    """From before the first call until the device is done with the last."""

    def lap(calls: int) -> Seconds:
        synchronise()
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        queued = time.perf_counter() - begin
        synchronise()
        return Seconds((time.perf_counter() - begin) / calls, queued / calls)

    return lap


def on_the_device(run: Callable[[], object]) -> Lapper:
    """Between two events: around a captured graph, or around calls that are queued while the device is busy."""
    graphs: dict[int, object] = {}

    def lap(calls: int) -> Seconds:
        if calls not in graphs:
            graphs[calls] = captured(run, calls)
        graph = graphs[calls]
        host = queueing(run)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        synchronise()
        queued = host if graph is not None else host * calls
        torch.cuda._sleep(int(HEADSTART * max(queued, LEAST) * CLOCK_RATE))
        start.record()
        if graph is None:
            for _ in range(calls):
                run()
        else:
            graph.replay()  # type: ignore[attr-defined]
        end.record()
        end.synchronize()
        return Seconds(start.elapsed_time(end) / 1e3 / calls, host)

    return lap


def queueing(run: Callable[[], object]) -> float:
    """Seconds the host needs for one call, not waiting for what it queues."""
    synchronise()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def captured(run: Callable[[], object], calls: int) -> torch.cuda.CUDAGraph | None:
    """As many calls as one graph, or None where they can't be captured: they wait for the device, say."""
    graph = torch.cuda.CUDAGraph()
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            for _ in range(calls):
                run()
    except Exception:
        # a capture that was broken off leaves an error behind, which the next call would be blamed for
        synchronise()
        return None
    return graph
