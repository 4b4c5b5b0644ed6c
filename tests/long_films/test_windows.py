"""Fused windows from file to file: those of a clip in memory, and a slow loop for any stride and weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latte_fast.diffusion.noise import FrameNoise, Use, normal
from latte_fast.long_films.source import LongSource
from latte_fast.long_films.windows import Windows
from latte_fast.sampling.request import Request
from latte_fast.testing import relative_error
from tests.helpers.long_films import FRAMES, Slow, drawn, request, source


@pytest.mark.parametrize(("method", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddpm", 0.0)])
@pytest.mark.parametrize("frames", [4, 11])
def test_equals_windows_in_memory(frames: int, method: str, eta: float, tmp_path: Path) -> None:
    """By default, with the noise of each frame and step too: the films of --frames without --long."""
    made = source()
    asked = request("windows", frames, 4, {"at_once": 2}, method=method, eta=eta, seed=7)
    want, _ = made.latents(Request(count=2, steps=4, scale=2.0, frames=frames, method=method, eta=eta, seed=7), [0, 1])  # type: ignore[arg-type]
    assert relative_error(drawn(LongSource(made), asked, tmp_path), want) <= 1e-5


def slow(frames: int, steps: int, stride: int, weight: list[float], number: int, label: int) -> Tensor:
    formulas = Slow(source(), request("windows", frames, steps))
    x = normal(0, number, (frames, 3, 8, 8), Use.START)
    for level in range(steps - 1, -1, -1):
        sums, total = torch.zeros_like(x), torch.zeros(frames)
        start = 0
        while True:
            start = min(start, frames - FRAMES)
            starts = formulas.starts(x[start : start + FRAMES], [level] * FRAMES, label)
            for i in range(FRAMES):
                sums[start + i] += weight[i] * starts[i]
                total[start + i] += weight[i]
            if start == frames - FRAMES:
                break
            start += stride
        x = torch.stack([formulas.step(x[i], sums[i] / total[i], level) for i in range(frames)])
    return x


@pytest.mark.parametrize(
    ("stride", "weights", "weight"),
    [(1, "pyramid", [1, 2, 2, 1]), (3, "flat", [1, 1, 1, 1]), (4, "pyramid", [1, 2, 2, 1])],
)
def test_any_stride_and_weights_equal_a_slow_loop(
    stride: int, weights: str, weight: list[float], tmp_path: Path
) -> None:
    made = source()
    made.wanted = [2]
    asked = request("windows", 9, 3, {"stride": stride, "weights": weights, "at_once": 3})
    got = drawn(LongSource(made), asked, tmp_path)
    assert relative_error(got[1], slow(9, 3, stride, weight, 1, 2)) <= 1e-5


def test_forwards_a_frame() -> None:
    """Steps / stride windows a frame."""
    films = LongSource(source())
    for stride in (1, 2, 4):
        counts = [
            films.complete(request("windows", frames, 5, {"stride": stride, "at_once": 1})).forwards
            for frames in (100, 104)
        ]
        assert counts[1] - counts[0] == 4 * 5 // stride
    assert films.complete(request("windows", 100, 5, {"stride": 2, "at_once": 7})).forwards == 5 * 7


def test_tubelets_share_a_step(tmp_path: Path) -> None:
    """A model whose patches span frames is called with a step a clip."""
    made = source(patch_frames=2)
    want, _ = made.latents(Request(count=2, steps=2, scale=2.0, frames=8), [0, 1])
    assert relative_error(drawn(LongSource(made), request("windows", 8, 2), tmp_path), want) <= 1e-5


def test_noise_of_frames_is_that_of_the_clip() -> None:
    for skip in (0, 3):
        noise = FrameNoise(5, [2, 9], (3, 5), Use.STEP, 4, skip)
        parts = torch.cat([noise.next(1), noise.next(2), noise.next(8 - skip)], dim=1)
        assert torch.equal(parts[1], normal(5, 9, (11, 3, 5), Use.STEP, 4)[skip:])


def test_one_file_is_read_and_the_other_written(tmp_path: Path) -> None:
    films = LongSource(source())
    for steps in (2, 3):
        work = films.work(films.complete(request("windows", 9, steps)), [0], tmp_path / "film", lambda n: None)
        assert isinstance(work, Windows) and work.film is work.stores[steps % 2]
