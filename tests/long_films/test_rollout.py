"""Rollouts against a slow loop, with tables and plans, and which models they are refused for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latte_fast.diffusion.noise import Use, normal
from latte_fast.long_films.source import LongSource
from latte_fast.sampling.request import Request
from latte_fast.testing import relative_error
from tests.helpers.long_films import FRAMES, Slow, drawn, request, source


def slow(frames: int, steps: int, context: int, number: int, label: int) -> Tensor:
    formulas = Slow(source(), request("rollout", frames, steps))
    film: list[Tensor] = []
    part = 0
    while len(film) < frames:
        # the last clip begins with as many frames as leave no new one over
        known = film[-max(context, FRAMES - (frames - len(film))) :] if film else []
        x = list(normal(0, number, (FRAMES, 3, 8, 8), Use.START, part))
        x[: len(known)] = known
        for level in range(steps - 1, -1, -1):
            levels = [0] * len(known) + [level] * (FRAMES - len(known))
            starts = formulas.starts(torch.stack(x), levels, label)
            for i in range(len(known), FRAMES):
                x[i] = formulas.step(x[i], starts[i], level)
        film += x[len(known) :]
        part += 1
    return torch.stack(film)


@pytest.mark.parametrize(("frames", "context"), [(4, 2), (10, 1), (12, 3), (9, 2)])
def test_equals_a_slow_loop(frames: int, context: int, tmp_path: Path) -> None:
    made = source()
    made.wanted = [0, 2]
    got = drawn(LongSource(made, 1.0), request("rollout", frames, 3, {"context": context}), tmp_path)
    assert got.shape[1] == frames
    assert relative_error(got[1], slow(frames, 3, context, 1, 2)) <= 1e-5
    # and the film begins with the ordinary sample
    clip, _ = made.latents(Request(count=2, steps=3, scale=2.0), [0, 1])
    assert torch.equal(got[:, :FRAMES], clip)


@pytest.mark.parametrize("method", ["ddim", "euler", "unipc", "heun"])
def test_tables_and_solvers_of_plans(method: str, tmp_path: Path) -> None:
    """Modulations out of a table, a row a frame: the same film; every solver goes on from the frames that are there."""
    made = source()
    asked = request("rollout", 9, 4, {"context": 2}, method=method)
    films = []
    for name, lossless in (("exact", False), ("lossless", True)):
        (tmp_path / name).mkdir()
        films.append(drawn(LongSource(made, 1.0), replace(asked, lossless=lossless), tmp_path / name))
    assert relative_error(films[1], films[0]) <= 1e-5
    if method == "euler":  # which is ddim's step
        (tmp_path / "ddim").mkdir()
        ddim = drawn(LongSource(made, 1.0), replace(asked, method="ddim"), tmp_path / "ddim")
        assert relative_error(films[0], ddim) <= 1e-5


def test_noise_of_steps_differs_from_clip_to_clip(tmp_path: Path) -> None:
    made = source()
    film = drawn(LongSource(made, 1.0), request("rollout", 10, 3, {"context": 1}, method="ddpm"), tmp_path)
    assert torch.isfinite(film).all()
    assert (film[:, 1:4] - film[:, 4:7]).abs().max() > 0.1


def test_forwards_a_frame() -> None:
    """S / (f - k): a clip of S forwards for every f - k frames."""
    films = LongSource(source(), 0.5)
    for context in (1, 2, 3):
        asked = request("rollout", FRAMES + 20 * (FRAMES - context), 5, {"context": context})
        assert films.complete(asked).forwards == 5 * 21


def test_refused_for_models_without_steps_of_frames() -> None:
    asked = request("rollout", 9, 4)
    with pytest.raises(
        ValueError, match=r"long must be fifo or windows for a model trained without diffusion\.frame_st"
    ):
        LongSource(source()).complete(asked)
    assert LongSource(source()).complete(request("rollout", 9, 4, {"insist": True})).options.context == 2
