"""A metric from end to end, on small sets: what it comes to, what is kept of it, what is refused before any work."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from latte_fast.data import shapes
from latte_fast.evaluation import Evaluation, evaluate, frechet_distance, inception_score, moments, write_result
from latte_fast.evaluation import features as features_module
from latte_fast.media.write import write_mp4
from tests.helpers.detectors import (
    Classes,
    Colours,
    Logits,
    Motion,
    Numbers,
    numbered,
    numbered_set,
    saved,
    write_arrays,
)
from tests.helpers.films import frame_folder, layout

RIGHT, LEFT = shapes.CLASSES.index("circle right"), shapes.CLASSES.index("circle left")


def moving_shapes(folder: Path, label: int, first: int, count: int = 30) -> Path:
    for i in range(count):
        write_mp4(folder / f"{i:04d}.mp4", shapes.clip(label, first + i, 8, 32).permute(0, 2, 3, 1))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    moving_shapes(root / "right", RIGHT, 0)
    moving_shapes(root / "right-again", RIGHT, 1000)
    moving_shapes(root / "left", LEFT, 2000)
    saved(Motion(), root / "motion.pt")
    return root


def of(root: Path, samples: str, **changes: Any) -> Evaluation:
    settings = {"real": root / "right", "kind": "videos", "frames": 8, "interval": 1, "size": 32} | changes
    return Evaluation(root / samples, root / "motion.pt", **settings)


def test_other_motion_is_further_than_another_draw(sets: Path) -> None:
    same = evaluate(of(sets, "right")).value
    again = evaluate(of(sets, "right-again"))
    left = evaluate(of(sets, "left")).value
    # colours and starts are drawn alike in all three: only the direction tells
    assert same <= 1e-12 and 0 < 3 * again.value < left
    assert again.features == 12 and again.samples["count"] == again.real["count"] == 30


def test_the_value_is_that_of_the_features(sets: Path, tmp_path: Path) -> None:
    network = torch.jit.load(str(sets / "motion.pt"))
    videos = {label: [shapes.clip(label, i, 8, 32) for i in range(30)] for label in (RIGHT, LEFT)}
    for i, video in enumerate(videos[RIGHT]):
        frame_folder(tmp_path / "real" / f"{i:02d}", video.permute(0, 2, 3, 1).numpy())
    write_arrays(tmp_path / "samples", [video.permute(0, 2, 3, 1).numpy() for video in videos[LEFT]])
    together = [torch.stack(of_one).movedim(1, 2) for of_one in videos.values()]
    rows = [network(x, rescale=True, resize=True, return_features=True).double().detach().numpy() for x in together]
    s, t = (np.cov(x.T, bias=True) for x in rows)
    roots = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real.sum()
    expected = ((rows[0].mean(0) - rows[1].mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * roots
    config = of(sets, str(tmp_path / "samples"), real=tmp_path / "real", kind="frames")
    for batch in (8, 7, 1):
        assert evaluate(replace(config, batch=batch)).value == pytest.approx(expected, rel=5e-6)


def test_fid_is_of_single_frames(tmp_path: Path) -> None:
    real = numbered_set(tmp_path / "real", [30, 20])
    samples = write_arrays(tmp_path / "samples", [numbered(i + 1, 16) for i in range(4)])
    config = Evaluation(samples, saved(Colours(), tmp_path / "c.pt"), "fid", real, "frames", size=8)
    result = evaluate(config)
    a = torch.tensor([[place, film, 0.0] for film, n in enumerate((30, 20)) for place in range(n)])
    b = torch.tensor([[place, film + 1.0, 0.0] for film in range(4) for place in range(16)])
    assert result.value == pytest.approx(frechet_distance(moments(a), moments(b)), rel=1e-9)
    assert (result.samples["count"], result.real["count"]) == (64, 50)
    assert "64 samples against 50 real frames, at 8x8; 3 features of c.pt" in "\n".join(result.lines())


def test_is_is_of_samples_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    videos = [np.full((16, 8, 8, 3), draw.integers(0, 30, 3), np.uint8) for _ in range(40)]
    config = Evaluation(write_arrays(tmp_path / "s", videos), saved(Classes(), tmp_path / "c.pt"), "is", size=8)
    p = torch.tensor(np.stack([video[0, 0, 0] for video in videos])).float().div(8).softmax(1)
    result = evaluate(config)
    assert (result.value, result.spread) == pytest.approx(inception_score(p), rel=1e-6)
    assert result.value > 1.1 and result.real == {}
    assert result.lines()[0] == f"inception score {result.value:.6g} +- {result.spread:.3g}"
    with pytest.raises(ValueError, match="sum to 1 in each row"):
        evaluate(replace(config, detector=saved(Logits(), tmp_path / "logits.pt")))


def test_every_layout_meets_the_samples(tmp_path: Path) -> None:
    samples = write_arrays(tmp_path / "samples", [numbered(i, 4) for i in range(3)])
    detector = saved(Numbers(), tmp_path / "n.pt")
    for kind in ("videos", "ffs", "sky", "ucf101", "taichi", "frames"):
        root = layout(kind, tmp_path / kind)
        result = evaluate(Evaluation(samples, detector, "fvd", root, kind, frames=4, size=8))
        assert result.real["films"] == result.real["count"] == 3
        assert result.value > 0


def test_a_film_that_does_not_decode_is_left_out_and_named(tmp_path: Path) -> None:
    real = numbered_set(tmp_path / "real", [16, 16, 16, 5])
    samples = write_arrays(tmp_path / "samples", [numbered(i, 4) for i in range(4)])
    config = Evaluation(
        samples, saved(Numbers(), tmp_path / "n.pt"), "fvd", real, "frames", frames=4, interval=4, size=8
    )
    whole = evaluate(config)
    for picture in (real / "001").iterdir():
        picture.write_bytes(b"nothing")
    result = evaluate(config)
    assert result.real["broken"] == ["001"] and result.real["count"] == 2 and result.value != whole.value
    assert "  left out of the real set: 1 too short and 1 that do not decode" in result.lines()
    # its header is whole
    file = samples / "000002.npz"
    np.savez(file, video=numbered(2, 4, 64))
    file.write_bytes(bytes(b ^ (255 if 20_000 < i < 20_100 else 0) for i, b in enumerate(file.read_bytes())))
    fewer = evaluate(config)
    assert fewer.samples["broken"] == ["000002.npz"] and fewer.samples["count"] == 3
    assert "1 samples do not decode and were left out, 000002.npz first" in fewer.warnings
    # whatever stood in the same batch is measured
    kept = write_arrays(tmp_path / "kept", [numbered(i, 4) for i in (0, 1, 3)])
    assert fewer.value == pytest.approx(evaluate(replace(config, samples=kept)).value, rel=1e-9)
    for i in (0, 1):
        (samples / f"{i:06d}.npz").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="samples must have 2 clips that decode, got 1"):
        evaluate(config)


def test_a_frame_that_does_not_decode_costs_that_frame_alone(tmp_path: Path) -> None:
    real = numbered_set(tmp_path / "real", [30, 20])
    (real / "001" / "0007.png").write_bytes(b"nothing")
    samples = write_arrays(tmp_path / "samples", [numbered(i + 1, 16) for i in range(4)])
    result = evaluate(Evaluation(samples, saved(Colours(), tmp_path / "c.pt"), "fid", real, "frames", size=8))
    left = [(place, film) for film, n in enumerate((30, 20)) for place in range(n) if (place, film) != (7, 1)]
    a = torch.tensor([[place, film, 0.0] for place, film in left])
    b = torch.tensor([[place, film + 1.0, 0.0] for film in range(4) for place in range(16)])
    assert result.value == pytest.approx(frechet_distance(moments(a), moments(b)), rel=1e-9)
    assert result.real["count"] == 49 and result.real["broken"] == ["001"]


def test_real_stats_are_kept_and_used(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept" / "right.safetensors"
    config = of(sets, "left", real_stats=kept)
    first = evaluate(config)
    assert first.value == evaluate(of(sets, "left")).value
    stamp = kept.stat().st_mtime_ns
    read: list[str] = []
    pieces = features_module.Pieces.__getitem__
    monkeypatch.setattr(
        features_module.Pieces,
        "__getitem__",
        lambda self, n: read.append(self.choice.films.root.name) or pieces(self, n),
    )
    second, without = evaluate(config), evaluate(replace(config, real="", kind="", workers=1))
    # neither batch nor workers are of what was kept
    assert evaluate(replace(config, batch=3)).value == pytest.approx(first.value, rel=5e-6)
    assert first.value == second.value == without.value
    assert {*read} == {"left"} and kept.stat().st_mtime_ns == stamp
    assert second.real == first.real | {"kept": str(kept)}
    assert without.real == second.real
    with safe_open(kept, "pt") as file:
        assert file.get_tensor("scatter").dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 7}, "real_stats must have frames 7, got 8 in"),
        ({"interval": 2, "frames": 4}, "must have frames 4, got 8"),
        ({"clips": 20}, "must have clips 20, got 2048"),
        ({"size": 40}, "must have size 40, got 32"),
        ({"seed": 1}, "must have seed 1, got 0"),
        ({"kind": "ffs"}, "must have kind ffs, got videos"),
        (
            {"real": "left"},
            r"must hold the moments of the same videos and frames, got others \(names, lengths or bytes",
        ),
        ({"detector": "other.pt"}, "must be of the detector with sha256 [0-9a-f]{12}, got [0-9a-f]{12} in"),
        (
            {"metric": "fid", "frames": None, "interval": None, "detector": "colours.pt"},
            "must have metric fid, got fvd",
        ),
    ],
    ids=["frames", "interval", "clips", "size", "seed", "kind", "set", "detector", "metric"],
)
def test_real_stats_of_another_making_are_refused(
    sets: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.safetensors"
    config = of(sets, "right", real_stats=kept)
    evaluate(config)
    saved(Motion(13), sets / "other.pt")
    saved(Colours(), sets / "colours.pt")
    changes = {name: sets / value if name in ("real", "detector") else value for name, value in changes.items()}
    nothing_is_measured(monkeypatch)
    with pytest.raises(ValueError, match=message):
        evaluate(replace(config, **changes))


def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("a clip was decoded")

    monkeypatch.setattr(features_module.Pieces, "__getitem__", fail)


def test_real_stats_that_are_no_such_file(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_is_measured(monkeypatch)
    kept = tmp_path / "kept.safetensors"
    with pytest.raises(ValueError, match=r"real must be the real set's folder, as .*kept.safetensors is not there yet"):
        evaluate(of(sets, "left", real="", kind="", real_stats=kept))
    kept.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"real_stats must be a file that this option wrote, got .*kept.safetensors"):
        evaluate(of(sets, "left", real_stats=kept))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="real_stats must be in a folder that can be written to"):
        evaluate(of(sets, "left", real_stats=tmp_path / "file" / "kept.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda:99"}, "^evaluate: device must be one that torch can use here, got cuda:99 "),
        ({"detector": "none.pt"}, "detector must be a TorchScript file, got .*none.pt, no file; published numbers"),
        ({"samples": "none"}, "samples must be a folder of films .* got .*none, which is no folder"),
        ({"real": "none"}, "path must be a folder"),
        ({"frames": 9}, "samples must have at least the 9 frames of a clip, got 8 in 0000.mp4"),
        (
            {"interval": 2},
            r"real must have at least 2 videos of 15 frames or more \(8 frames at interval 2\), got 0 of",
        ),
    ],
    ids=["device", "detector", "samples", "real", "frames", "interval"],
)
def test_what_is_refused_before_any_work(
    sets: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_is_measured(monkeypatch)
    before = sorted(sets.rglob("*"))
    files = {
        name: sets / value if name in ("real", "detector", "samples") else value for name, value in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        evaluate(replace(of(sets, "left"), **files))
    assert sorted(sets.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "kod"}, "metric must be one of fvd, fid, is, .*fid50k, is50k, got 'kod'"),
        ({"metric": "fid", "clips": 10}, "clips must be left out for fid, got 10"),
        ({"metric": "fid", "interval": 3}, "interval must be left out for fid, got 3"),
        ({"images": 10}, "images must be left out for fvd, got 10"),
        ({"clips": 1}, "clips must be at least 2, got 1"),
        ({"metric": "fid", "images": 1}, "images must be at least 2, got 1"),
        ({"metric": "is", "real": "", "kind": "", "clips": 19}, "clips must be at least 20, got 19"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"metric": "is"}, "real must be left out for is, which has no real set, got x"),
        ({"kind": ""}, "kind must be one of videos, ffs, sky, ucf101, taichi, frames, as real is laid out, got none"),
        ({"kind": "latents"}, "kind must be one of videos, .* got latents"),
        ({"real": "", "kind": ""}, "real must be the folder of the real set, or real_stats a file .* got none"),
        ({"real_stats": "a.pt"}, r"real_stats must end in .safetensors, got a\.pt"),
        ({"real": "", "real_stats": "a.safetensors"}, "kind must be left out without real, got videos"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()),
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^evaluate: {message}"):
        Evaluation("s", "d", **({"real": "x", "kind": "videos"} | changes))


def test_warnings_say_what_keeps_a_number_from_being_compared(sets: Path, tmp_path: Path) -> None:
    videos = [shapes.clip(LEFT, i, 8, 32).permute(0, 2, 3, 1).numpy() for i in range(10)]
    write_arrays(tmp_path / "few", videos)
    (tmp_path / "few" / "000003.npz").unlink()
    result = evaluate(of(sets, str(tmp_path / "few"), size=30))
    assert result.warnings == [
        "published numbers take 2048 clips of a set that has them, got 9 samples and 30 real",
        "the sets differ in clips: 9 samples, 30 real",
        "9 clips are too few for 12 features: such sets look further apart than they are",
        "samples are 32x32 pixels, cropped and scaled to 30x30",
        "samples.json names 10 samples, the folder holds 9",
    ]
    enough = replace(result, features=4, samples=result.samples | {"count": 2048, "films": 10, "pixels": [30, 30]})
    assert replace(enough, real=result.real | {"count": 2048}).warnings == []


def test_the_record_is_enough_to_repeat_it(sets: Path, tmp_path: Path) -> None:
    result = evaluate(of(sets, "left", clips=25, seed=3))
    write_result(tmp_path / "new" / "fvd.json", result)
    held = json.loads((tmp_path / "new" / "fvd.json").read_text())
    assert held["value"] == result.value and held["metric"] == "fvd" and held["features"] == 12
    assert held["settings"] == {
        "clips": 25, "frames": 8, "interval": 1, "batch": 8, "size": 32, "seed": 3, "device": "cpu"
    }  # fmt: skip
    assert held["detector"]["sha256"] == result.detector and len(result.detector) == 64
    assert held["real"]["count"] == 25 and held["real"]["films"] == 30 and len(held["real"]["set"]) == 64
    assert {"latte_fast", "torch", "numpy", "av", "python"} == held["versions"].keys()
    with pytest.raises(ValueError, match=r"out must be a new file, got .*fvd.json, which is there"):
        write_result(tmp_path / "new" / "fvd.json", result)
    with pytest.raises(ValueError, match=r"out must end in \.json, got .*fvd.txt"):
        write_result(tmp_path / "fvd.txt", result)
