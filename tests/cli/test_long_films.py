"""Films of any length by the command line, from training with a step a frame to a resumed request."""

from pathlib import Path

import pytest

from tests.cli.test_train import run
from tests.helpers.films import decode

SIZES = ("--model.patch-size", "4", "--model.hidden-size", "16", "--model.depth", "2", "--model.num-heads", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    data = ("--frames", "4", "--size", "8", "--steps", "2", "--batch", "2", "--data.endless", *SIZES)
    run("train", *data, "--out", str(folder / "frames"), "--diffusion.frame-steps", "0.5")
    run("train", *data, "--out", str(folder / "clips"))
    return folder


def test_each_kind_draws_a_film(trained: Path, tmp_path: Path) -> None:
    given = ("--frames", "11", "--samples", "2", "--batch", "1", "--weights", "model", "--guidance", "2")
    for kind, more in (
        ("fifo", ("--steps", "4")),
        ("windows", ("--steps", "2", "--long-films.stride", "3", "--method", "ddpm")),
        ("rollout", ("--steps", "2", "--long-films.context", "1", "--quality", "lossless")),
    ):
        out = tmp_path / kind
        args = (str(trained / "frames"), "--long", kind, *given, *more, "--out", str(out))
        assert "2 samples" in run("sample", *args)
        assert [decode(p).shape for p in sorted(out.glob("*.mp4"))] == [(11, 8, 8, 3)] * 2
        assert "out must not hold these samples yet" in run("sample", *args, ok=False)
        run("sample", *args, "--resume")
        assert sorted(p.name for p in out.iterdir()) == ["000000.mp4", "000001.mp4", "samples.json"]


def test_an_untrained_model_rolls_out_when_insisted(trained: Path, tmp_path: Path) -> None:
    given = (str(trained / "clips"), "--long", "rollout", "--frames", "9", "--samples", "1", "--weights", "model")
    given = (*given, "--steps", "2", "--out", str(tmp_path / "s"))
    said = run("sample", *given, ok=False)
    assert "long must be fifo or windows for a model trained without diffusion.frame_steps" in said
    assert not (tmp_path / "s").exists()
    said = run("sample", *given, "--long-films.insist")
    assert "rollouts may fall apart" in said and "1 samples" in said


def test_one_message_each(trained: Path, tmp_path: Path) -> None:
    def said(*args: str) -> str:
        text = run(
            "sample", str(trained / "frames"), "--weights", "model", *args, "--out", str(tmp_path / "s"), ok=False
        )
        assert not (tmp_path / "s").exists()
        return text

    long = ("--long", "fifo", "--frames", "9")
    assert "frames must be given with --long, got none" in said("--long", "fifo")
    assert "frames must be at least the model's 4 for fifo, got 3" in said("--long", "fifo", "--frames", "3")
    assert "steps must be a multiple of the model's 4 frames for fifo" in said(*long, "--steps", "10")
    assert "long_films.stride must be left out for fifo, got 2" in said(*long, "--long-films.stride", "2")
    assert "--sequence must be left out with --long, got 2" in said(*long, "--sequence", "2")
    assert "quality must be left out for fifo" in said(*long, "--quality", "lossless")
    assert "--long_films must be left out without --long" in said("--long-films.stride", "2")
    assert "steps must be at least 1, got 0" in said("--steps", "0")
