"""FIFO against a slow loop over frames, and what its queue is made of."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latte_fast.diffusion.noise import Use, normal
from latte_fast.long_films.diagonal import Diagonal, Window
from latte_fast.long_films.fifo import Fifo
from latte_fast.long_films.source import LongSource
from latte_fast.long_films.stepper import Stepper
from latte_fast.long_films.store import work_off
from latte_fast.runs.config import DiffusionConfig
from latte_fast.sampling.request import Request
from latte_fast.testing import relative_error
from tests.helpers.long_films import FRAMES, Slow, drawn, request, source


def slow(films: int, steps: int, lookahead: bool, number: int, label: int, eta: float) -> Tensor:
    """One film of the queue: every frame is written down with the steps it has taken."""
    made = source()
    formulas = Slow(made, request("fifo", films, steps))
    x = normal(0, number, (films, 3, 8, 8), Use.START)
    moved = FRAMES // 2 if lookahead else FRAMES
    for iteration in range(films + steps - 1):
        taken = [min(max(iteration - frame, 0), steps) for frame in range(films)]
        before, seen = x.clone(), set()
        for slot in range(0, steps, moved):
            head = iteration - steps + 1 + slot  # the frame in the window's first moved slot
            own = [frame for frame in range(head, head + moved) if 0 <= frame < films]
            if not own:
                continue
            start = min(max(head - (FRAMES - moved), 0), films - FRAMES)
            seen |= set(range(start, start + FRAMES))
            levels = [steps - 1 - taken[frame] for frame in range(start, start + FRAMES)]
            starts = formulas.starts(before[start : start + FRAMES], levels, label)
            for frame in own:
                level = steps - 1 - taken[frame]
                noise = normal(0, number, (max(seen) + 1, 3, 8, 8), Use.STEP, iteration)[frame] if eta else None
                x[frame] = formulas.step(before[frame], starts[frame - start], level, eta, noise)
    return x


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("frames", [4, pytest.param(5, marks=pytest.mark.slow), 13])
def test_equals_a_slow_loop(frames: int, lookahead: bool, tmp_path: Path) -> None:
    made = source()
    made.wanted = [1, 2]
    got = drawn(LongSource(made), request("fifo", frames, 8, {"lookahead": lookahead}), tmp_path)
    for number, label in ((0, 1), (1, 2)):
        assert relative_error(got[number], slow(frames, 8, lookahead, number, label, 0.0)) <= 1e-5


def test_noise_of_steps_is_that_of_the_iteration(tmp_path: Path) -> None:
    """Of a film that is as long as the model's clips the queue holds all frames from the first iteration on."""
    made = source()
    made.wanted = [1]
    got = drawn(LongSource(made), request("fifo", 4, 4, {"lookahead": False}, eta=0.6), tmp_path)
    assert relative_error(got[0], slow(4, 4, False, 0, 1, 0.6)) <= 1e-5


class Flat:
    """A queue as long as the clip, whose frames are all at the same step."""

    def __init__(self, steps: int, window: int):
        self.frames = self.window = window
        self.steps = self.iterations = steps

    def level(self, frame: int, iteration: int) -> int:
        return self.steps - 1 - iteration

    def windows(self, iteration: int) -> list[Window]:
        return [Window(0, 0, self.window)]

    def span(self, iteration: int) -> tuple[int, int]:
        return 0, self.window

    def finished(self, iteration: int) -> range:
        return range(self.window if iteration == self.steps - 1 else 0)


@pytest.mark.parametrize(("prediction", "method"), [("start_x", "ddim"), ("v", "ddpm"), ("flow", "ddim")])
def test_equal_steps_are_the_ordinary_sampler(prediction: str, method: str, tmp_path: Path) -> None:
    made = source(DiffusionConfig(prediction=prediction))  # type: ignore[arg-type]
    asked = request("fifo", FRAMES, 6, {"lookahead": False}, method=method)
    fifo = Fifo(Stepper(made, asked, [3, 5]), Flat(6, FRAMES), tmp_path / "film", lambda n: None)  # type: ignore[arg-type]
    work_off(fifo, tmp_path / "kept", "", lambda n: None)
    want, _ = made.latents(Request(count=2, steps=6, scale=2.0, method=method), [3, 5])  # type: ignore[arg-type]
    assert relative_error(fifo.film.read(0, FRAMES), want) <= 1e-5


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize(("frames", "steps"), [(4, 4), (5, 12), (30, 12), (12, 12)])
def test_every_frame_takes_every_step_once(frames: int, steps: int, lookahead: bool) -> None:
    schedule = Diagonal(frames, steps, 4, lookahead)
    taken: dict[int, list[int]] = {frame: [] for frame in range(frames)}
    finished: list[int] = []
    spans = [schedule.span(i) for i in range(schedule.iterations)]
    assert spans == sorted(spans) and spans[-1][1] == frames
    for iteration in range(schedule.iterations):
        first, stop = schedule.span(iteration)
        for window in schedule.windows(iteration):
            assert first <= window.start and window.start + 4 <= stop
            assert window.start <= window.first < window.stop <= window.start + 4
            for frame in range(window.first, window.stop):
                taken[frame].append(schedule.level(frame, iteration))
        finished += schedule.finished(iteration)
        assert all(first <= frame < stop for frame in schedule.finished(iteration))
    assert all(levels == list(range(steps - 1, -1, -1)) for levels in taken.values())
    assert finished == list(range(frames))


@pytest.mark.parametrize("lookahead", [False, True])
def test_forwards_a_frame(lookahead: bool) -> None:
    """S / f windows a frame, twice as many with lookahead, in the middle of a film; at the ends at most S more."""
    films = LongSource(source())
    counts = []
    for frames in (64, 65):
        asked = request("fifo", frames, 8, {"lookahead": lookahead, "at_once": 1})
        counts.append(films.complete(asked).forwards)
    each = 8 // FRAMES * (1 + lookahead)
    assert counts[1] - counts[0] == each and each * 64 <= counts[0] <= each * (64 + 8)
    batched = films.complete(request("fifo", 64, 8, {"lookahead": lookahead, "at_once": each}))
    assert batched.forwards == 64 + 8 - 1  # one forward an iteration


def test_a_window_spans_as_many_steps_as_frames() -> None:
    """Away from the film's ends; there clean frames and noise stand beside those that move."""
    schedule = Diagonal(30, 12, 4, True)
    for window in schedule.windows(20)[1:]:
        levels = [schedule.level(window.start + i, 20) for i in range(4)]
        assert levels == list(range(levels[0], levels[0] + 4))
    assert [schedule.level(frame, 20) for frame in range(7, 11)] == [-1, -1, 0, 1]


def test_levels_stay_on_the_device() -> None:
    stepper = Stepper(source(), request("fifo", 8, 4), [0, 1])
    t = stepper.levels([[0, 1, 2, 3], [-1, 0, 1, 2]])
    assert t is stepper.levels([[0, 1, 2, 3], [-1, 0, 1, 2]])
    assert torch.equal(t, torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 1, 2]]))
    assert stepper.conditions(2)["y"] is stepper.conditions(2)["y"] and len(stepper.conditions(2)["y"]) == 8
