"""Files of features in the place of films."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latte_fast.cli.evaluate import evaluate as command
from latte_fast.evaluation import Evaluation, evaluate, frechet_distance, mmd, moments
from latte_fast.evaluation.kernel_distance import SQUARE


@pytest.fixture
def rows(tmp_path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 5, generator=draw) + shift for shift in (0.0, 0.3))
    np.save(tmp_path / "x.npy", x.numpy())
    np.savez(tmp_path / "x.npz", features=x.numpy())
    save_file({"features": y}, tmp_path / "y.safetensors")
    return x, y


def test_features_take_the_place_of_films(rows: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    x, y = rows
    for name in ("x.npy", "x.npz"):
        result = evaluate(Evaluation(tmp_path / name, metric="jedi", real=tmp_path / "y.safetensors"))
        assert result.value == pytest.approx(100 * mmd(x, y, SQUARE, biased=True), rel=1e-12)
    assert result.lines()[:2] == [
        f"JEDi {result.value:.6g}",
        "  of 40 samples against 40 real clips, 5 features in files",
    ]
    fvd = evaluate(Evaluation(tmp_path / "x.npy", metric="fvd", real=tmp_path / "y.safetensors"))
    assert fvd.value == pytest.approx(frechet_distance(moments(x), moments(y)), rel=1e-12)
    p = x.softmax(1)
    np.save(tmp_path / "p.npy", p.numpy())
    assert 1 < evaluate(Evaluation(tmp_path / "p.npy", metric="is")).value < 5


def test_the_command_writes_beside_the_file(rows: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(tmp_path / "x.npy", metric="prdc", real=tmp_path / "y.safetensors", device="cpu")
    out = capsys.readouterr().out
    assert (tmp_path / "x.prdc.json").is_file() and "coverage" in out and "recall" in out


def test_files_that_hold_no_features(rows: object, tmp_path: Path) -> None:
    def refused(message: str, samples: str = "x.npy", **changes: object) -> None:
        given = {"metric": "kvd", "real": tmp_path / "y.safetensors"} | changes
        with pytest.raises(ValueError, match=message):
            evaluate(Evaluation(tmp_path / samples, **given))  # type: ignore[arg-type]

    refused(r"samples must be features \(N, D\) of finite numbers, got .*none.npy, no file", "none.npy")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(r"got .*pickled.npy \(Object arrays cannot be loaded", "pickled.npy")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    refused(r"got \(3,\) in .*flat.npy", "flat.npy")
    bad = np.zeros((4, 5))
    bad[2, 1] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    refused("got others in row 2 of .*nan.npy", "nan.npy")
    np.save(tmp_path / "wide.npy", np.zeros((4, 6)))
    refused("features must have one width, got 6 and 5", "wide.npy")
    np.savez(tmp_path / "other.npz", rows=bad)
    refused(r"got .*other.npz \(", "other.npz")
    refused("real must be a file of features .* got folder", real="folder")
    refused("detector must be left out for files of features, got d", detector="d")
