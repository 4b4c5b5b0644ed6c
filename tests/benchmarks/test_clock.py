"""A device row is the device's time: where both clocks are fakes, a constant delay of the host does not enter it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks import clock, race
from benchmarks.report import Row
from benchmarks.report.markdown import remark


class Machine:
    """A host and a GPU: a launch costs the host time, a kernel starts when it is queued and the GPU is free."""

    def __init__(self, delay: float, kernel: float, captures: bool):
        self.delay, self.kernel, self.captures = delay, kernel, captures
        self.now = self.free = 0.0
        self.graph: list[float] | None = None

    def launch(self, seconds: float) -> None:
        if self.graph is not None:
            if not self.captures:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.graph.append(seconds)
            return
        self.free = max(self.now, self.free) + seconds

    def run(self) -> None:
        self.now += self.delay
        self.launch(self.kernel)

    def synchronise(self) -> None:
        self.now = max(self.now, self.free)


def install(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def __init__(self, enable_timing: bool):
            self.at = 0.0

        def record(self) -> None:
            self.at = max(machine.now, machine.free)

        def synchronize(self) -> None:
            machine.synchronise()

        def elapsed_time(self, end: "Event") -> float:
            return 1e3 * (end.at - self.at)

    class Graph:
        def replay(self) -> None:
            machine.now += machine.delay
            for seconds in self.kernels:
                machine.launch(seconds)

    class Capturing:
        def __init__(self, graph: Graph):
            self.graph = graph

        def __enter__(self) -> None:
            machine.graph = self.graph.kernels = []

        def __exit__(self, *exc: object) -> None:
            machine.graph = None

    class Stream:
        def wait_stream(self, other: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *exc: object) -> None: ...

    cuda = torch.cuda
    fakes = {"Event": Event, "CUDAGraph": Graph, "graph": Capturing, "Stream": Stream, "current_stream": Stream}
    fakes |= {"stream": lambda stream: stream, "is_available": lambda: True, "synchronize": machine.synchronise}
    fakes |= {"_sleep": lambda cycles: machine.launch(cycles / clock.CLOCK_RATE)}
    for name, fake in fakes.items():
        monkeypatch.setattr(cuda, name, fake)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: machine.now)


@pytest.mark.parametrize("captures", [True, False], ids=["graph", "events"])
def test_a_constant_host_delay_does_not_enter_a_device_row(monkeypatch: pytest.MonkeyPatch, captures: bool) -> None:
    for delay in (1e-6, 30e-6, 2e-3):
        machine = Machine(delay, 20e-6, captures)
        with monkeypatch.context() as context:
            install(machine, context)
            runs: dict[str, Callable | str] = {"ours": machine.run, "absent": "not installed"}
            laps = race.race(runs, seconds=0.01, on_device=True)
        assert laps["ours"].median == pytest.approx(20e-6), delay
        assert laps["ours"].low == pytest.approx(laps["ours"].high)
        assert laps["ours"].host == pytest.approx(delay)
        assert laps["absent"].reason == "not installed"


def test_a_row_on_the_wall_has_the_host_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user waits for: where the host is slower than the GPU, the host."""
    machine = Machine(30e-6, 20e-6, True)
    with monkeypatch.context() as context:
        install(machine, context)
        laps = race.race({"ours": machine.run}, seconds=0.01)
    assert laps["ours"].median > 30e-6 and laps["ours"].host == pytest.approx(30e-6)


def test_without_a_gpu_the_wall_is_all_there_is() -> None:
    laps = race.race({"ours": lambda: sum(range(1000))}, seconds=0.01, on_device=True)
    assert 0 < laps["ours"].host <= laps["ours"].median


def test_reports_name_the_host_where_it_is_another_time() -> None:
    row = Row("ops", "a race", "ours", 1e-3, 1e-3, 1e-3, 3, note="twice")
    assert remark(row) == "twice" and remark(replace(row, host=1.001e-3)) == "twice"
    assert remark(replace(row, host=3e-5)) == "twice; host 0.03 ms"
