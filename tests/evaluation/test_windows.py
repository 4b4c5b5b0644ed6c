"""A metric over time: clips from start to end of long films, each window a value."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latte_fast.cli.evaluate import evaluate as command
from latte_fast.evaluation import Evaluation, evaluate
from latte_fast.evaluation.film_sets import open_samples
from latte_fast.evaluation.selection import choose_samples
from tests.helpers.detectors import Colours, Motion, Numbers, numbered, numbered_set, saved, write_arrays


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
