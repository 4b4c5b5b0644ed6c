"""A metric over time: clips from start to end of long films, each window a value."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latte_fast.cli.evaluate import evaluate as command
from latte_fast.evaluation import Evaluation, evaluate, measure
from latte_fast.evaluation.film_sets import open_samples
from latte_fast.evaluation.selection import choose_samples
from tests.helpers.detectors import Classes, Colours, Motion, Numbers, numbered, numbered_set, saved, write_arrays


def config_of(tmp_path: Path, **changes: object) -> Evaluation:
    samples = write_arrays(tmp_path / "s", [numbered(i + 3, 20) for i in range(4)])
    real = numbered_set(tmp_path / "real", [10] * 4)
    given = {"real": real, "kind": "frames", "frames": 4, "interval": 1, "size": 8, "windows": 5} | changes
    return Evaluation(samples, saved(Numbers(), tmp_path / "n.pt"), **given)  # type: ignore[arg-type]


def test_windows_reach_from_the_first_frame_to_the_last(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    films = open_samples(config.samples)
    places = [choose_samples(films, config, window).pieces[0].places for window in range(5)]
    assert places == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]
    frames = replace(config, metric="fid", frames=None, interval=None, detector=saved(Colours(), tmp_path / "c.pt"))
    taken = [choose_samples(films, frames, window) for window in range(5)]
    assert [piece.places for piece in taken[3].pieces] == [[12, 13, 14, 15]] * 4


def test_a_curve_rises_where_the_films_leave_the_real_set(tmp_path: Path) -> None:
    """The red of a frame is its number: real clips start at 0 to 6, so later windows are further away."""
    config = config_of(tmp_path, bootstrap=3)
    result = evaluate(config)
    values = [score.value for score in result.curve]
    assert len(values) == 5 and values[1:] == sorted(values[1:]) and values[4] > 10 * values[1]
    assert result.value == values[0] == evaluate(replace(config, windows=1)).value
    record = result.record()
    assert [point["window"] for point in record["curve"]] == [0, 1, 2, 3, 4]
    assert all(point["interval"][0] <= point["value"] <= point["interval"][1] for point in record["curve"])
    assert f"  window 5 of 5: {values[4]:.6g}" in "\n".join(result.lines())
    own = Evaluation(config.samples, metric="flicker", frames=4, windows=2)
    assert len(evaluate(own).curve) == 2


def coloured(*colours: tuple[int, int, int]) -> np.ndarray:
    """A film of four frames of each colour."""
    return np.repeat(np.array(colours, np.uint8), 4, 0)[:, None, None].repeat(8, 1).repeat(8, 2)


def test_coherence_is_what_stays_as_it_began(tmp_path: Path) -> None:
    """One film of three changes its class half way; the others stay, one of them among other colours of its class."""
    red, green, blue, dark = (200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 0, 0)
    films = [coloured(red, red, green, green), coloured(blue, blue, blue, blue), coloured(red, dark, dark, red)]
    samples, classes = write_arrays(tmp_path / "s", films), saved(Classes(), tmp_path / "c.pt")
    given = {"metric": "ccs", "frames": 4, "windows": 4, "size": 8}
    result = evaluate(Evaluation(samples, classes, **given))  # type: ignore[arg-type]
    assert [score.value for score in result.curve] == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert result.value == pytest.approx(7 / 9) and result.record()["metric"] == "ccs"
    frames = saved(FrameClasses(), tmp_path / "f.pt")
    result = evaluate(Evaluation(samples, frames, "ics", windows=4, size=8))
    means = [np.mean([answer(films[i][4 * w]) for i in range(3)], 0) for w in range(4)]
    want = [float((means[0] * np.log(means[0] / mean)).sum()) for mean in means]
    assert [score.value for score in result.curve] == pytest.approx(want, rel=1e-4, abs=1e-9) and want[2] > want[1]
    assert result.value == pytest.approx(np.mean(want[1:]), rel=1e-4)
    for changes, message in (
        ({"windows": 1}, "windows must be at least 2 for ccs, which compares later windows with the first, got 1"),
        ({"real": "x"}, "real must be left out for ccs, which has no real set, got x"),
    ):
        with pytest.raises(ValueError, match=message):
            Evaluation(samples, classes, **given | changes)  # type: ignore[arg-type]


def test_coherence_of_a_film_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = write_arrays(tmp_path / "s", [coloured((200, 0, 0), (0, 200, 0))] * 3)
    config = Evaluation(samples, saved(Classes(), tmp_path / "c.pt"), "ccs", frames=4, windows=2, size=8)
    iterate = measure.Collected.__iter__

    def losing(self: measure.Collected):
        rows = list(iterate(self))
        if self.source.choice.pieces[0].places[0]:  # type: ignore[attr-defined]
            self.broken.append("000001.npz")
            rows = [torch.cat(rows)[[0, 2]]]
        yield from rows

    monkeypatch.setattr(measure.Collected, "__iter__", losing)
    with pytest.raises(ValueError, match=r"decode from start to end for ccs, .* got 000001\.npz"):
        evaluate(config)


def answer(frame: np.ndarray) -> np.ndarray:
    """What FrameClasses says of a picture."""
    logits = frame.astype(np.float64).mean((0, 1)) / 64
    return np.exp(logits) / np.exp(logits).sum()


class FrameClasses(nn.Module):
    """Probabilities of three classes, by the mean colours of a picture."""

    def forward(self, x: Tensor, no_output_bias: bool = False) -> Tensor:
        return torch.softmax(x.float().mean((2, 3)) / 64, 1)


def test_windows_longer_than_the_films(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="windows must be at most 17, the clips of 4 frames that start apart in"):
        evaluate(config_of(tmp_path, windows=18))
    evaluate(config_of(tmp_path, windows=17))
    frames = {"metric": "fid", "frames": None, "interval": None, "detector": saved(Colours(), tmp_path / "c.pt")}
    with pytest.raises(ValueError, match="windows must be at most the frames of a film, which are 20 in 000000"):
        evaluate(replace(config_of(tmp_path), windows=21, **frames))
    with pytest.raises(ValueError, match="windows must be at least 1, got 0"):
        config_of(tmp_path, windows=0)


def test_the_command_draws_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    config = config_of(tmp_path)
    detector = saved(Motion(3), tmp_path / "m.pt")
    write_arrays(
        tmp_path / "s", [np.random.default_rng(i).integers(0, 256, (20, 16, 16, 3), np.uint8) for i in range(4)]
    )
    numbered_set(tmp_path / "real", [10] * 4)
    given = {"frames": 8, "interval": 1, "size": 16, "device": "cpu", "workers": 0}
    command(Path(config.samples), detector, "kvd", Path(config.real), "frames", windows=3, **given)  # type: ignore[arg-type]
    held = json.loads((tmp_path / "s" / "kvd.json").read_text())
    assert len(held["curve"]) == 3 and held["value"] == held["curve"][0]["value"] and "standard_error" in held["values"]
    assert (tmp_path / "s" / "kvd.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "s" / "kvd.parts").exists() and "KVD" in capsys.readouterr().out
