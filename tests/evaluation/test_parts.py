"""Rows computed in parts: by any number of ranks, and after a stop."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latte_fast.data import shapes
from latte_fast.distributed.ranks import Ranks
from latte_fast.evaluation import Evaluation, evaluate, parts
from latte_fast.evaluation.parts import divide
from tests.helpers.detectors import Motion, numbered, numbered_set, saved, write_arrays

ROOT = Path(__file__).parents[2]


class Bright(nn.Module):
    """Mean colours; NaN where a clip is bright."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        y = x.float().mean((2, 3, 4))
        return y / (y[:, 1:2] < 100).float()


class Alone(Ranks):
    """One of several ranks, whose peers are not there: what it reduces is its own."""

    def any(self, flag: bool) -> bool:
        return flag

    def from_first(self, make: object) -> None:
        raise RuntimeError("the first rank goes on")


def clips(label: int, first: int) -> list:
    return [shapes.clip(label, first + i, 8, 16).permute(0, 2, 3, 1).numpy() for i in range(11)]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    monkeypatch.setattr(parts, "ROWS", 3)
    write_arrays(tmp_path / "s", clips(0, 0))
    real = numbered_set(tmp_path / "real", [9] * 7)
    detector = saved(Motion(6), tmp_path / "m.pt")
    return Evaluation(
        tmp_path / "s", detector, real=real, kind="frames", frames=8, interval=1, size=16, batch=2, bootstrap=5
    )


def test_parts_cover_all_pieces_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS", 3)
    for counts in ([1] * 7, [2, 2, 2], [5, 1, 1, 1], [1], [3]):
        found = divide(counts)
        assert [i for part in found for i in part] == list(range(len(counts)))
        assert all(sum(counts[i] for i in part) >= 3 for part in found[:-1]) and all(found)


def test_ranks_share_the_parts(config: Evaluation, tmp_path: Path) -> None:
    """Each rank computes its own, whoever comes first; the one that reads all gets the numbers of a single process."""
    alone = evaluate(config)
    kept = replace(config, parts=tmp_path / "kept")
    for rank in (2, 1):
        with pytest.raises(RuntimeError, match="the first rank goes on"):
            evaluate(kept, Alone(rank, 3))
    files = sorted(path.name for path in (tmp_path / "kept").rglob("*.safetensors"))
    # 11 clips are 4 parts, 7 real films are 3: those of ranks 1 and 2
    assert files == ["000001.safetensors"] * 2 + ["000002.safetensors"] * 2
    together = evaluate(kept)
    assert together.record() == alone.record()


def test_a_stopped_measurement_goes_on(config: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = replace(config, parts=tmp_path / "kept")
    alone, calls = evaluate(config).record(), []
    of_detector = parts.Collected._write

    def stops(self: parts.Collected, number: int, part: parts.Part) -> None:
        of_detector(self, number, part)
        calls.append(number)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(parts.Collected, "_write", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(kept)
    assert evaluate(kept).record() == alone
    # 3 parts of the real set and 4 of the samples, each once
    assert len(calls) == 7
    assert evaluate(kept).record() == alone and len(calls) == 7
    # a part that was cut short is computed again, and no other
    file = sorted((tmp_path / "kept").rglob("000001.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:100])
    assert evaluate(kept).record() == alone and len(calls) == 8
    # others' rows are not taken: of another detector, size or set
    evaluate(replace(kept, size=20))
    assert len(calls) == 15
    # and the real set's serve other samples
    evaluate(replace(kept, samples=write_arrays(tmp_path / "t", clips(1, 50))))
    assert len(calls) == 19


def test_a_clip_whose_features_are_nan_is_named(tmp_path: Path) -> None:
    real = numbered_set(tmp_path / "real", [4] * 3)
    samples = write_arrays(tmp_path / "s", [numbered(i, 4) for i in (1, 2, 120, 3)])
    config = Evaluation(
        samples, saved(Bright(), tmp_path / "b.pt"), "fvd", real, "frames", frames=4, interval=1, size=8
    )
    with pytest.raises(ValueError, match=r"detector must give finite numbers, got others for 000002.npz"):
        evaluate(config)


def test_several_ranks_need_a_folder(config: Evaluation) -> None:
    with pytest.raises(ValueError, match="parts must be a folder that all 2 processes reach, got none"):
        evaluate(config, Ranks(0, 2))


@pytest.mark.slow
def test_one_two_and_four_processes_write_the_same_file(config: Evaluation, tmp_path: Path) -> None:
    write_arrays(tmp_path / "s", [x for first in range(0, 264, 11) for x in clips(0, first)])
    numbered_set(tmp_path / "real", [9] * 150)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    args = ["evaluate", str(config.samples), "--detector", str(config.detector), "--real", str(config.real)]
    args += ["--kind", "frames", "--frames", "8", "--interval", "1", "--size", "16", "--bootstrap", "5"]
    args += ["--device", "cpu", "--workers", "0"]
    found = []
    for count in (1, 2, 4):
        out = tmp_path / f"{count}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
        launch = launch if count > 1 else [sys.executable, "-m"]
        command = [*launch, "latte_fast", *args, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.count("FVD") == 1, done.stderr
        assert not out.with_suffix(".parts").exists()
        found.append(json.loads(out.read_text()))
    assert found[0]["samples"]["count"] == 264 and found[0] == found[1] == found[2]
    assert torch.isfinite(torch.tensor(found[0]["value"])) and found[0]["value"] > 0
