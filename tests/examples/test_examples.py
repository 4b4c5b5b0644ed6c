"""Each example runs: in this process as a script is, the one for several processes under torchrun."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latte_fast.data.shapes import CLASSES, clip
from latte_fast.media.write import write_mp4
from tests.helpers.detectors import Motion, saved
from tests.helpers.films import moving

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, name: str, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *args])
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for label in (0, 1):
        (folder / CLASSES[label]).mkdir()
        for number in range(4):
            write_mp4(folder / CLASSES[label] / f"{number}.mp4", clip(label, number, 8, 16).permute(0, 2, 3, 1))
    return folder


def test_train_then_sample(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    out = tmp_path / "run"
    run(monkeypatch, "train_on_a_folder.py", str(films), "--out", str(out), "--size", "16", "--steps", "2")
    run(monkeypatch, "sample_in_python.py", str(out), "--out", str(tmp_path / "films"), "--steps", "2")
    said = capsys.readouterr().out
    assert "trained for 2 steps on 2 classes: circle left, circle right" in said
    assert "(2, 8, 16, 16, 3) torch.uint8 pixels of ['circle left', 'circle left']" in said
    assert len(list((tmp_path / "films").glob("*.mp4"))) == 4


def test_patch_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from tests.helpers.pipelines import pipeline

    pipeline().save_pretrained(tmp_path / "latte-1")
    out = tmp_path / "film.mp4"
    args = ("--prompt", "rain", "--out", str(out), "--steps", "2", "--size", "16")
    monkeypatch.setattr("latte_fast.unpatch", lambda pipe: print(f"undone {type(pipe).__name__}"), raising=False)
    run(monkeypatch, "patch_a_pipeline.py", str(tmp_path / "latte-1"), *args)
    said = capsys.readouterr().out
    assert "modules swapped" in said and "undone LattePipeline" in said and out.is_file()


@pytest.mark.slow
def test_train_with_torchrun(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "examples" / "train_with_torchrun.py"), str(films), "--out", str(out)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*command, "--size", "16", "--steps", "2"], capture_output=True, text=True, env=env)
    # torch's process group may abort after all was done; what was written is what is judged here
    assert (out / "checkpoints" / "step-0000002" / "manifest.json").is_file(), done.stderr
    assert len(list(Path(f"{out}-samples").glob("*.mp4"))) == 8, done.stderr


def test_vqgan_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--out", str(tmp_path / "run"), "--steps", "1", "--per-class", "1", "--classifier-steps", "1")
    with pytest.raises(SystemExit, match="vqgan_shapes: less than expected"):
        run(monkeypatch, "vqgan_shapes.py", *args)
    assert json.loads((tmp_path / "run" / "judged.json").read_text())["codes_used"] >= 1
    assert (tmp_path / "run" / "decoded.png").is_file()


@pytest.mark.slow
def test_tokens_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update of each of the four networks; the second command trains nothing and draws no long film again."""
    args = ("--out", str(tmp_path), "--sizes", "small", "--stored", "16", "--noise", "0.2")
    args = (*args, "--steps", "1", "--vqgan-steps", "1", "--batch", "2", "--layers", "1")
    args = (*args, "--width", "32", "--heads", "2", "--per-class", "1", "--films", "8", "--frames", "32")
    args = (*args, "--windows", "4", "--classifier-steps", "1")
    drawn = []
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"tokens_shapes: fewer than 80% recognised; .*times as far"):
            run(monkeypatch, "tokens_shapes.py", *args)
        found = json.loads((tmp_path / "judged.json").read_text())
        assert 0 <= found["recognised"] < 0.8
        films = found["films"]
        assert list(films) == ["real", "decoded", "hierarchy", "window"]
        assert all(len(part["classifier"]) == len(part["recognised"]) == 4 for part in films.values())
        assert max(films["real"]["classifier"]) < min(films["hierarchy"]["classifier"])
        monkeypatch.setattr("latte_fast.training.Trainer.update", lambda *args: pytest.fail("a step is repeated"))
        drawn.append({path: path.stat().st_mtime_ns for path in tmp_path.glob("*-32-0.9-1-2-noise-0.2/*.npz")})
    assert len(drawn[0]) == 16 and drawn[0] == drawn[1]
    for name in ("drawn.png", "drawn.mp4", "hierarchy.mp4", "window.png", "curve.png"):
        assert (tmp_path / name).is_file()


@pytest.mark.slow
def test_vqgan_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mp4(tmp_path / "film.mp4", moving(80, 48, 64))
    with pytest.raises(SystemExit, match="vqgan_film: less than the 26 dB expected"):
        run(monkeypatch, "vqgan_film.py", str(tmp_path / "film.mp4"), "--out", str(tmp_path / "run"), "--steps", "1")
    assert json.loads((tmp_path / "run" / "judged.json").read_text())["clips"] == 1
    assert len(list((tmp_path / "run" / "parts").glob("*.mp4"))) == 4


@pytest.mark.slow
def test_long_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of one update, whose films of 16 frames are judged by quarter; the second command draws nothing."""
    args = ("--out", str(tmp_path), "--steps", "1", "--sampling-steps", "4", "--per-class", "1")
    args = (*args, "--classifier-steps", "2", "--real", "1")
    for _ in range(2):
        with pytest.raises(SystemExit, match="rollouts must be recognised at 80% and lose at most 5%"):
            run(monkeypatch, "long_shapes.py", *args)
        results = json.loads((tmp_path / "results-16.json").read_text())
        assert len(results) == 6 and all(len(found["recognised"]) == 4 for found in results.values())
        monkeypatch.setattr("latte_fast.long_films.sample.open_long", lambda *a, **k: pytest.fail("drawn again"))
    forwards = {found["kind"]: found["forwards"] for found in results.values()}
    assert forwards == {"fifo": 2.125, "windows": 1.75, "rollout": 1.75}
    assert (tmp_path / "rollout-0.5-16.mp4").is_file() and "| half" in (tmp_path / "results-16.md").read_text()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("classes", "joint")]


@pytest.mark.parametrize("name", [*SLOW, "text"])
def test_shapes_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    args = ("--out", str(tmp_path), "--only", name, "--steps", "2", "--per-class", "1", "--classifier-steps", "2")
    with pytest.raises(SystemExit, match=f"fewer than 80% recognised: {name}"):
        run(monkeypatch, "shapes_models.py", *args)
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["steps"] == 2 and 0 <= result["recognised"] <= 1
    assert (tmp_path / name / "samples.png").is_file()


FEW = ("dense", "untouched", "quarter", "half", "1 module, seed 1")


@pytest.mark.parametrize("parts", [FEW, pytest.param((), marks=pytest.mark.slow)], ids=["few", "all"])
def test_flexdit_shapes(parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """At 20 steps; the second command finds all parts complete."""
    args = ("--out", str(tmp_path), "--steps", "20", "--batch", "1", "--samples", "8", "--sampling-steps", "2")
    args = (*args, "--classifier-steps", "2", *(("--only", *parts) if parts else ()))
    run(monkeypatch, "flexdit_shapes.py", *args)
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == (len(parts) or 17)
    assert [results[n]["steps"] for n in ("dense", "untouched", "half")] == [20, 0, 10]
    assert results["half"]["flops"] < 0.56 and "| after a quarter" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.png").is_file() and "minutes of training" in capsys.readouterr().out
    monkeypatch.setattr("latte_fast.training.Trainer.run", lambda self: pytest.fail("a part is repeated"))
    run(monkeypatch, "flexdit_shapes.py", *args)
    assert json.loads((tmp_path / "results.json").read_text()) == results


@pytest.mark.slow
def test_real_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """At 8 steps, by a network of random weights; the second command finds all parts complete."""
    for seed, name in enumerate(("a", "b")):
        write_mp4(tmp_path / f"{name}.mp4", moving(80, 48, 64, seed))
    out, detector = tmp_path / "out", saved(Motion(), tmp_path / "m.pt")
    args = [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), "--out", str(out), "--detector", str(detector)]
    args += ["--steps", "8", "--batch", "2", "--samples", "8", "--sampling-steps", "8"]
    run(monkeypatch, "real_films.py", *args)
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["dense", "joint", "flexdit", "cached", "fp8", "int8"]
    assert all(r["interval"][0] <= r["value"] <= r["interval"][1] for r in results.values())
    assert results["cached"]["psnr"] > 20 and all(20 < results[name]["psnr"] < 90 for name in ("fp8", "int8"))
    assert "| joint | 8 |" in capsys.readouterr().out
    assert (out / "results.png").is_file() and "data:image/png" in (out / "joint.html").read_text()
    monkeypatch.setattr("latte_fast.training.Trainer.run", lambda self: pytest.fail("a part is repeated"))
    run(monkeypatch, "real_films.py", *args)
    assert json.loads((out / "results.json").read_text()) == results


@pytest.mark.slow
def test_long_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """At 8 steps, by a network of random weights; the second command finds all parts complete."""
    write_mp4(tmp_path / "a.mp4", moving(34, 48, 64))
    out, detector = tmp_path / "out", saved(Motion(), tmp_path / "m.pt")
    args = [str(tmp_path / "a.mp4"), "--out", str(out), "--detector", str(detector), "--steps", "8", "--batch", "2"]
    args += ["--samples", "2", "--sampling-steps", "8", "--frames", "16"]
    run(monkeypatch, "long_film.py", *args)
    results = json.loads((out / "results-16.json").read_text())
    assert len(results) == 7 and all(len(found["distance"]) == 2 for found in results.values())
    said = capsys.readouterr().out
    assert "| one step a clip | rollout |" in said and "| half with a step a frame | fifo |" in said
    assert len(list((out / "clips" / "a").glob("*.mp4"))) == 20 and (out / "results-16.png").is_file()
    assert len(list(out.glob("*.mp4"))) == 6 and len(list((out / "film-16").glob("*.npz"))) == 4
    monkeypatch.setattr("latte_fast.training.Trainer.run", lambda self: pytest.fail("a part is repeated"))
    run(monkeypatch, "long_film.py", *args)
    assert json.loads((out / "results-16.json").read_text()) == results
    with pytest.raises(SystemExit, match="frames must be a multiple of 8 from 16 on"):
        run(monkeypatch, "long_film.py", str(tmp_path / "a.mp4"), "--frames", "20")
    with pytest.raises(SystemExit, match="the film must have at least 23 frames, got 8"):
        run(monkeypatch, "long_film.py", str(out / "clips" / "a" / "0000.mp4"), "--out", str(tmp_path / "b"))
