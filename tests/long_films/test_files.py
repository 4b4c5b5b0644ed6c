"""Films on disk: what a stop leaves, what a resumed request draws, several processes, memory, and what is refused."""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latte_fast.long_films import store
from latte_fast.long_films.request import LongOptions, LongRequest, default_steps
from latte_fast.long_films.source import LongSource
from latte_fast.media import write
from latte_fast.runs.config import DiffusionConfig
from latte_fast.sampling.files import NAMES, sample_files
from latte_fast.training import Ranks
from tests.helpers.films import decode
from tests.helpers.long_films import Live, request, source

KINDS = {"fifo": {"at_once": 1}, "windows": {"at_once": 1}, "rollout": {}}


def counted(films: LongSource, calls: list[int], last: float = float("inf")) -> None:
    """Counts the calls of the model; the one after the `last` raises as a stop does."""
    model = films.source.model

    def stops(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        calls.append(len(x))
        if len(calls) > last:
            raise KeyboardInterrupt
        return model(x, t, **conditions)

    films.source.model = stops


def long_source(last: float = float("inf"), calls: list[int] | None = None) -> LongSource:
    films = LongSource(source(), 1.0)
    counted(films, [] if calls is None else calls, last)
    return films


def asked_for(kind: str, **given: Any) -> LongRequest:
    steps = 4 if kind == "fifo" else 3
    asked = request(kind, 18, steps, KINDS[kind], **({"count": 2, "batch": 1, "eta": 0.3} | given))
    return LongSource(source(), 1.0).complete(asked)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_film_goes_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files as without a stop, and little of what was drawn before it is drawn again."""
    monkeypatch.setattr(store, "KEPT_EVERY", 0.0)
    asked = asked_for(kind)
    whole: list[int] = []
    sample_files(long_source(calls=whole), asked, tmp_path / "whole", Ranks())
    assert len(whole) == 2 * asked.forwards
    out = tmp_path / "stopped"
    for i, last in enumerate((9, 8, 11)):
        with pytest.raises(KeyboardInterrupt):
            sample_files(long_source(last), asked, out, Ranks(), resume=i > 0)
    calls: list[int] = []
    sample_files(long_source(calls=calls), asked, out, Ranks(), resume=True)
    again = 3 * asked.steps if kind == "rollout" else 3 * 2  # a unit for each stop
    assert len(calls) <= len(whole) - (9 + 8 + 11) + again
    assert names(out) == names(tmp_path / "whole") == ["000000.mp4", "000001.mp4", NAMES]
    for name in names(out):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert decode(out / "000001.mp4").shape == (18, 8, 8, 3)


def test_what_another_request_left_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEPT_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        sample_files(long_source(12), asked_for("fifo", count=1), tmp_path / "out", Ranks())
    assert (tmp_path / "out" / ".film-000000.safetensors").is_file()
    other = asked_for("fifo", count=1, seed=1)
    sample_files(long_source(), other, tmp_path / "out", Ranks())
    sample_files(long_source(), other, tmp_path / "alone", Ranks())
    assert (tmp_path / "out" / "000000.mp4").read_bytes() == (tmp_path / "alone" / "000000.mp4").read_bytes()
    assert names(tmp_path / "out") == names(tmp_path / "alone")


def test_a_damaged_remnant_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEPT_EVERY", 0.0)
    asked = asked_for("windows", count=1)
    sample_files(long_source(), asked, tmp_path / "whole", Ranks())
    damages: list[Callable[[Path], object]] = [
        lambda out: (out / ".film-000000").unlink(),
        lambda out: (out / ".film-000000").write_bytes(b"short"),
        lambda out: (out / ".film-000000.safetensors").write_bytes(b"damaged"),
    ]
    for i, damage in enumerate(damages):
        out = tmp_path / str(i)
        with pytest.raises(KeyboardInterrupt):
            sample_files(long_source(10), asked, out, Ranks())
        damage(out)
        sample_files(long_source(), asked, out, Ranks(), resume=True)
        assert (out / "000000.mp4").read_bytes() == (tmp_path / "whole" / "000000.mp4").read_bytes()


def test_films_are_decoded_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts_seen: list[Tensor] = []
    stream = write.stream_mp4

    def passing(path: Path, parts: Any, fps: float) -> None:
        stream(path, ((parts_seen.append(part), part)[1] for part in parts), fps)

    monkeypatch.setattr(write, "stream_mp4", passing)
    asked = replace(asked_for("rollout", count=1), frames=40)
    sample_files(long_source(), asked, tmp_path / "films", Ranks())
    assert [len(part) for part in parts_seen] == [16, 16, 8]
    # other formats hold the same film
    monkeypatch.undo()
    sample_files(long_source(), replace(asked, format="npz"), tmp_path / "arrays", Ranks())
    video = np.load(tmp_path / "arrays" / "000000.npz")["video"]
    assert np.array_equal(video, torch.cat(parts_seen).numpy()) and video.shape == (40, 8, 8, 3)


def test_a_film_follows_from_its_number(tmp_path: Path) -> None:
    """Beside another film, and in another order; another seed gives another film."""
    films = LongSource(source(), 1.0)
    for kind in KINDS:
        asked = asked_for(kind, eta=0.0)
        together = films.draw(asked, [4, 9])[0]
        alone = films.draw(asked, [9])[0]
        assert (together[1].int() - alone[0].int()).abs().max() <= 1
        other = films.draw(replace(asked, seed=1), [9])[0]
        assert (other.int() - alone.int()).abs().float().mean() > 5


def test_a_request_is_noted(tmp_path: Path) -> None:
    sample_files(long_source(), asked_for("rollout", count=1), tmp_path / "out", Ranks())
    held = json.loads((tmp_path / "out" / NAMES).read_text())["request"]
    assert held["long"] == "rollout" and held["long_films.context"] == 2 and held["frames"] == 18
    with pytest.raises(ValueError, match=r"long must be 'rollout' as in .*got 'windows'"):
        sample_files(long_source(), asked_for("windows", count=1), tmp_path / "out", Ranks(), resume=True)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "loop"}, "long must be one of fifo, windows, rollout, got 'loop'"),
    ({"kind": "fifo", "stride": 2}, r"long_films\.stride must be left out for fifo, got 2"),
    ({"kind": "windows", "lookahead": False}, r"long_films\.lookahead must be left out for windows, got False"),
    ({"kind": "fifo", "insist": True}, r"long_films\.insist must be left out for fifo"),
    ({"kind": "windows", "context": 1}, r"long_films\.context must be left out for windows"),
    ({"kind": "windows", "stride": 0}, r"long_films\.stride must be at least 1, got 0"),
    ({"kind": "windows", "stride": 5}, r"long_films\.stride must be at most the model's 4, got 5"),
    ({"kind": "windows", "weights": "round"}, r"long_films\.weights must be pyramid or flat, got 'round'"),
    ({"kind": "rollout", "context": 4}, r"long_films\.context must be below the model's 4 frames, got 4"),
    ({"kind": "rollout", "at_once": 0}, r"long_films\.at_once must be at least 1, got 0"),
    ({"kind": "fifo", "frames": 3}, "frames must be at least the model's 4 for fifo, got 3"),
    ({"kind": "rollout", "frames": None}, "frames must be at least the model's 4 for rollout, got none"),
    ({"kind": "fifo", "steps": 6}, "steps must be a multiple of the model's 4 frames for fifo, .* as 4 or 8, got 6"),
    ({"kind": "fifo", "method": "dpm++"}, "method must be ddpm or ddim for fifo, .*, got 'dpm"),
    ({"kind": "windows", "method": "heun"}, "method must be ddpm or ddim for windows, .*, got 'heun'"),
    ({"kind": "fifo", "plan": "high"}, "plan must be left out for fifo, which rollout alone follows"),
    ({"kind": "windows", "lossless": True}, "quality must be left out for windows"),
    ({"kind": "windows", "steps": 1}, r"steps must be in \[2, 1000\], got 1"),
    ({"kind": "rollout", "count": 0}, "samples must be at least 1, got 0"),
]


@pytest.mark.parametrize(("given", "message"), OPTIONS, ids=[message[:40] for _, message in OPTIONS])
def test_wrong_options_are_named(given: dict[str, Any], message: str) -> None:
    options = {
        n: x for n, x in given.items() if n in ("stride", "lookahead", "insist", "context", "weights", "at_once")
    }
    rest = {"frames": 8, "steps": 4, "scale": 2.0} | {name: x for name, x in given.items() if name not in options}
    with pytest.raises(ValueError, match=message):
        LongSource(source(), 1.0).complete(LongRequest(options=LongOptions(**options), **rest))


def test_models_that_cannot_are_named() -> None:
    odd = LongSource(source(num_frames=5))
    with pytest.raises(ValueError, match=r"long_films\.lookahead must be off for a model of 5 frames, as"):
        odd.complete(request("fifo", 10, 5))
    assert odd.complete(request("fifo", 10, 5, {"lookahead": False})).forwards > 0
    tubes = LongSource(source(patch_frames=2), 1.0)
    for kind in ("fifo", "rollout"):
        with pytest.raises(ValueError, match="long must be windows for a model whose patches span frames"):
            tubes.complete(request(kind, 8, 4))
    with pytest.raises(ValueError, match="frames and stride must be multiples of the 2 frames of a patch, got 9, 2"):
        tubes.complete(request("windows", 9, 4))
    merging = source()
    merging.vae.frame_factor = 2
    with pytest.raises(ValueError, match="long must be left out with a codec that merges 2 frames, got windows"):
        LongSource(merging).complete(request("windows", 8, 4))
    del merging.vae.frame_factor
    still = LongSource(source(num_frames=1), 1.0)
    with pytest.raises(ValueError, match="long must be fifo or windows for a model of 1 frame, got rollout"):
        still.complete(request("rollout", 8, 4))
    flow = LongSource(source(DiffusionConfig(prediction="flow")), 1.0)
    for kind in KINDS:
        with pytest.raises(ValueError, match="without noise for rectified flow"):
            flow.complete(request(kind, 8, 4, method="ddpm"))
    unguided = source()
    unguided.guidable = False
    with pytest.raises(ValueError, match="guidance must be 1 for a model trained without dropped labels"):
        LongSource(unguided).complete(request("windows", 8, 4))


def test_fifo_has_steps_that_divide() -> None:
    assert [default_steps("fifo", frames, 50) for frames in (16, 4, 50, 64)] == [64, 52, 50, 64]
    assert default_steps("windows", 16, 50) == 50


def helper(*args: str) -> str:
    command = [sys.executable, "-m", "tests.helpers.long_films", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["windows", *(pytest.param(k, marks=pytest.mark.slow) for k in ("fifo", "rollout"))])
def test_memory_does_not_grow_with_the_film(kind: str, tmp_path: Path) -> None:
    """The most bytes of tensors at once: for 256 frames, of 3 MB, what it is for 32 within 1 %."""
    films = LongSource(source(input_size=32, patch_size=16), 1.0)
    peaks = []
    for frames in (32, 256):
        asked = films.complete(request(kind, frames, 4, count=1, batch=1))
        (tmp_path / str(frames)).mkdir()
        with Live() as live, films.films(asked, [0], tmp_path / str(frames), lambda n: None) as (drawn, _):
            assert sum(len(part) for part in drawn[0]) == frames
        peaks.append(live.most)
    assert abs(peaks[1] - peaks[0]) <= 0.01 * peaks[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_leaves_nothing_to_the_garbage_collector(kind: str, tmp_path: Path) -> None:
    """What waits for it lies between later tensors: the memory of a process grew by 5 % from 32 to 256 frames."""
    films = LongSource(source(), 1.0)
    work = films.work(films.complete(request(kind, 40, 4)), [0, 1], tmp_path / "film", lambda n: None)
    for held in work.stores:
        held.make()
    work.take(0, {})
    work.run(0)
    gc.collect()
    gc.disable()
    try:
        for unit in range(1, 4):
            work.run(unit)
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_several_processes_write_the_same_files(kind: str, tmp_path: Path) -> None:
    for how in ("one", "two", "killed"):
        helper(how, kind, "40", str(tmp_path / how))
    films = names(tmp_path / "one")
    assert len(films) == 6 and films == names(tmp_path / "two") == names(tmp_path / "killed")
    for name in films:
        assert len({(tmp_path / how / name).read_bytes() for how in ("one", "two", "killed")}) == 1
