"""Sets that are not as they should be, and files that others write while a run is at work."""

from dataclasses import replace
from pathlib import Path

import pytest

from latte_fast.evaluation import Evaluation, evaluate, features
from tests.helpers.detectors import Colours, Numbers, numbered, numbered_set, saved, write_arrays


@pytest.fixture
def config(tmp_path: Path) -> Evaluation:
    samples = write_arrays(tmp_path / "samples", [numbered(i + 5, 4) for i in range(4)])
    real = numbered_set(tmp_path / "real", [10, 10, 10])
    return Evaluation(samples, saved(Numbers(), tmp_path / "n.pt"), "fvd", real, "frames", frames=4, size=8)


def test_real_stats_of_a_run_beside_this_one_are_left(
    config: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.safetensors"
    pieces = features.Pieces.__getitem__

    def meanwhile(self: features.Pieces, number: int) -> object:
        if self.choice.films.root.name == "real":
            kept.write_bytes(b"another's")
        return pieces(self, number)

    monkeypatch.setattr(features.Pieces, "__getitem__", meanwhile)
    assert evaluate(replace(config, real_stats=kept)).value > 0
    assert kept.read_bytes() == b"another's"


def test_a_picture_that_links_to_nothing_is_left_out(config: Evaluation) -> None:
    picture = Path(config.real) / "001" / "0000.png"
    assert picture.exists()
    picture.unlink()
    picture.symlink_to("nothing")
    result = evaluate(config)
    assert result.real["broken"] == ["001"] and result.real["count"] == 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("metric", ["fvd", "fid"])
def test_samples_of_several_sizes_are_warned_of(config: Evaluation, tmp_path: Path, metric: str, workers: int) -> None:
    if metric == "fid":
        config = replace(config, metric="fid", frames=None, detector=saved(Colours(), tmp_path / "c.pt"))
    config = replace(config, workers=workers)
    assert not [line for line in evaluate(config).warnings if "samples are" in line]
    several = [numbered(i + 5, 4, side) for i, side in enumerate((8, 16, 16, 9))]
    # one more of width, one more of height
    several += [several[1][:, :, :12], several[1][:, :12]]
    write_arrays(tmp_path / "samples", several)
    assert "samples are of 5 sizes, cropped and scaled to 8x8" in evaluate(config).warnings


def test_lines_say_what_was_left_out_and_when_there_are_too_few(config: Evaluation) -> None:
    """As many clips as features leave a covariance without full rank too."""
    result = evaluate(config)
    assert not any("left out" in line for line in result.lines())
    for width, few in ((2, False), (3, True)):
        warned = any("3 clips are too few" in line for line in replace(result, features=width).lines())
        assert warned == few
    short = replace(result, real=result.real | {"short": 2, "broken": ["a", "b", "c"]})
    assert "  left out of the real set: 2 too short and 3 that do not decode" in short.lines()
