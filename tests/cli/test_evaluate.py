"""`latte-fast evaluate` as a person runs it: behind `latte-fast sample`, and where it refuses."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from latte_fast import testing
from latte_fast.cli.evaluate import evaluate
from latte_fast.codecs.vae import open_vae
from latte_fast.data import shapes
from latte_fast.evaluation import features
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.models.latte.model import Latte
from latte_fast.runs.load import Trained
from latte_fast.sampling.files import sample_files
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import trained_source
from latte_fast.training import Ranks, TrainConfig
from tests.cli.test_cli import run
from tests.helpers.detectors import Classes, Motion, saved

SIZES = {"input_size": 16, "patch_size": 4, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of shapes, a detector, and what an untrained model samples, where the commands are given."""
    monkeypatch.chdir(tmp_path)
    shapes.write_shapes("real", 2, 8, 16)
    saved(Motion(), tmp_path / "motion.pt")
    torch.manual_seed(0)
    model = testing.refill(Latte(**SIZES, num_frames=8, num_classes=12, extras=2)).eval()
    source = trained_source(
        Trained(model, LatteAdapter(model.config, shapes.CLASSES), TrainConfig(), 0), open_vae("identity")
    )
    request = Request(count=20, batch=10, steps=2, format="npz")
    sample_files(source, request, "samples", Ranks())
    return tmp_path


ARGS = ("samples", "--real", "real", "--kind", "videos", "--detector", "motion.pt", "--frames", "8", "--interval", "1")


def test_evaluates_what_sample_wrote(folder: Path) -> None:
    args = (*ARGS, "--size", "24", "--device", "cpu", "--workers", "1")
    out = run("evaluate", *args, "--real-stats", "kept.safetensors")
    held = json.loads((folder / "samples" / "fvd.json").read_text())
    assert f"FVD {held['value']:.6g}\n  of 20 samples against 24 real clips, 8 frames each" in out
    assert "12 features of motion.pt" in out and "warning: published numbers take 2048 clips" in out
    assert "samples/fvd.json" in out and held["value"] > 0
    assert held["samples"]["sampled"]["request"]["steps"] == 2
    again = run("evaluate", *args, "--real-stats", "kept.safetensors", "--out", "again.json")
    repeated = json.loads((folder / "again.json").read_text())
    assert repeated["value"] == held["value"] and repeated["real"]["kept"] == "kept.safetensors"
    assert "the real set's features were kept in kept.safetensors" in again and "kept in" not in out
    # what is there is not overwritten, and nothing is measured first
    before = (folder / "samples" / "fvd.json").read_bytes()
    assert "out must be a new file, got samples/fvd.json, which is there" in run("evaluate", *args, ok=False)
    assert (folder / "samples" / "fvd.json").read_bytes() == before


def test_a_number_that_cannot_be_written_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = saved(Classes(), folder / "classes.pt")
    pieces = features.Pieces.__getitem__

    def meanwhile(self: features.Pieces, number: int) -> object:
        Path("is.json").write_text("another run's")
        return pieces(self, number)

    monkeypatch.setattr(features.Pieces, "__getitem__", meanwhile)
    with pytest.raises(SystemExit, match=r"out must be a new file, got is\.json, which is there"):
        evaluate(Path("samples"), detector, "is", frames=8, size=16, device="cpu", workers=0, out=Path("is.json"))
    assert capsys.readouterr().out.startswith("inception score ")
    assert Path("is.json").read_text() == "another run's"


def test_inception_score(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = saved(Classes(), folder / "classes.pt")
    evaluate(Path("samples"), detector, "is", frames=8, size=16, device="cpu", workers=0, out=Path("is.json"))
    held = json.loads((folder / "is.json").read_text())
    assert 1 < held["value"] <= 3 and held["spread"] >= 0 and held["real"] == {}
    assert (
        f"inception score {held['value']:.6g} +- {held['spread']:.3g}\n  of 20 samples, 8 frames"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (ARGS[:-4], "samples must have at least the 16 frames of a clip, got 8 in 000000.npz"),
        ((*ARGS, "--metric", "fid"), "frames must be left out for fid, got 8"),
        (("nothing", *ARGS[1:]), "samples must be a folder of films"),
        ((*ARGS, "--detector", "none.pt"), "none.pt, no file; published numbers are made with i3d_torchscript.pt (I3D"),
        ((*ARGS, "--out", "motion.pt"), "out must end in .json, got motion.pt"),
        ((*ARGS, "--out", "motion.pt/fvd.json"), "out must be in a folder that can be written to, got motion.pt/fvd"),
        ((*ARGS[:3], *ARGS[5:]), "kind must be one of videos, ffs, sky, ucf101, taichi, frames, as real is laid out"),
        (("real", *ARGS[1:], "--device", "gpu0"), "device must be like cpu, cuda or cuda:1, got gpu0"),
    ],
    ids=["short", "fid", "samples", "detector", "suffix", "out", "kind", "device"],
)
def test_refused_in_one_line_without_leaving_files(
    folder: Path,
    args: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}
    command = importlib.import_module("latte_fast.cli")
    monkeypatch.setattr("sys.argv", ["latte-fast", "evaluate", *args])
    with pytest.raises(SystemExit) as refused:
        command.main()
    assert str(refused.value).startswith("evaluate: ") and message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()} == before
