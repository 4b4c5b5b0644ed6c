"""The folders that evaluation takes: every layout of the data layer, and samples as they are written."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from latte_fast.data.layouts import LayoutError
from latte_fast.evaluation.film_sets import open_array, open_real, open_samples
from latte_fast.media.video import VideoError
from latte_fast.sampling.chunks import Chunk
from latte_fast.sampling.files import NAMES, write_chunk
from latte_fast.sampling.request import Request
from tests.helpers.detectors import numbered, write_arrays
from tests.helpers.films import encode, frame_folder, layout, moving


@pytest.mark.parametrize("kind", ["videos", "ffs", "sky", "ucf101", "taichi", "frames"])
def test_every_layout_is_a_real_set(kind: str, tmp_path: Path) -> None:
    found = open_real(kind, layout(kind, tmp_path / kind))
    assert [len(film) for film in found.films] == [12, 12, 12]
    assert found.films[1].read([3, 7]).shape[0] == 2


def test_a_real_video_that_does_not_open_is_left_out(tmp_path: Path) -> None:
    root = layout("ffs", tmp_path / "ffs")
    (root / "train" / "bad.mp4").write_bytes(b"nothing")
    found = open_real("ffs", root)
    assert len(found.films) == 3 and found.broken == ["train/bad.mp4"]


@pytest.mark.parametrize("format", ["mp4", "gif", "npz"])
def test_samples_as_the_sampler_writes_them(format: str, tmp_path: Path) -> None:
    videos = torch.from_numpy(np.stack([moving(5, 32, 32, i) for i in range(3)]))
    request = Request(count=3, batch=3, format=format)  # type: ignore[arg-type]
    write_chunk(tmp_path, Chunk([0, 1, 2], 3), videos, ["a", "b", "c"], request)
    (tmp_path / NAMES).write_text(json.dumps({"request": request.__dict__, "names": ["a", "b", "c"]}))
    found = open_samples(tmp_path)
    assert [found.name(i) for i in range(3)] == [f"{i:06d}.{format}" for i in range(3)]
    assert [len(film) for film in found.films] == [5, 5, 5]
    assert found.origin["count"] == 3 and found.origin["request"]["format"] == format
    error = np.abs(found.films[1].read([4, 0]).astype(int) - videos[1][[4, 0]].numpy()).mean()
    assert error == 0 if format == "npz" else error < 12


def test_samples_of_other_tools(tmp_path: Path) -> None:
    encode(tmp_path / "films" / "deep" / "a.avi", moving(4), "mpeg4")
    frame_folder(tmp_path / "pictures" / "clip", numbered(0, 6))
    assert [len(film) for film in open_samples(tmp_path / "films").films] == [4]
    found = open_samples(tmp_path / "pictures")
    assert found.films[0].read([5])[0, 0, 0].tolist() == [5, 0, 0] and found.origin == {}


def test_folders_that_are_refused(tmp_path: Path) -> None:
    refused = partial(pytest.raises, LayoutError)
    with refused(match="samples must be a folder of films .*, got .*none, which is no folder"):
        open_samples(tmp_path / "none")
    sheets = frame_folder(tmp_path / "sheets", numbered(0, 2), "{:06d}-000003.png")
    with refused(match=r"got pictures in .*sheets itself \(contact sheets of `latte-fast sample --format png`\?\)"):
        open_samples(sheets)
    (tmp_path / "empty").mkdir()
    with refused(match="of one format, got .*empty with nothing"):
        open_samples(tmp_path / "empty")
    both = write_arrays(tmp_path / "both", [numbered(0, 2)])
    encode(both / "a.mp4", moving(3))
    with refused(match="of one format, got .*both with 000000.npz, a.mp4, samples.json"):
        open_samples(both)


def test_a_sample_that_is_broken_is_an_error(tmp_path: Path) -> None:
    folder = write_arrays(tmp_path / "a", [numbered(0, 4), numbered(1, 4)])
    (folder / "000001.npz").write_bytes((folder / "000001.npz").read_bytes()[:100])
    with pytest.raises(
        VideoError, match=r"000001.npz: must hold `video`, as `latte-fast sample --format npz` writes it"
    ):
        open_samples(folder)
    for name, held, message in (
        ("other", {"film": numbered(0, 4)}, "must hold `video`"),
        ("floats", {"video": numbered(0, 4).astype(np.float32)}, r"uint8 \(F, H, W, 3\), got float32 \(4, 8, 8, 3\)"),
        ("flat", {"video": numbered(0, 4)[0]}, r"got uint8 \(8, 8, 3\)"),
        ("none", {"video": numbered(0, 0)}, r"got uint8 \(0, 8, 8, 3\)"),
    ):
        np.savez(tmp_path / f"{name}.npz", **held)
        with pytest.raises(VideoError, match=message):
            open_array(tmp_path / f"{name}.npz")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(VideoError, match=r"a\.mp4: Invalid data"):
        open_samples(tmp_path / "b")


def test_arrays_with_any_bytes_changed_are_named(tmp_path: Path) -> None:
    """As the sampler writes them, compressed: the archive's errors are of many classes."""
    draw = np.random.default_rng(0)
    write_arrays(tmp_path, [draw.integers(0, 256, (4, 8, 8, 3), np.uint8)])
    path = tmp_path / "000000.npz"
    whole = path.read_bytes()
    refused = 0
    for i in range(600):
        changed = bytearray(whole)
        for _ in range(3):
            changed[draw.integers(len(whole))] = draw.integers(256)
        path.write_bytes(changed[: draw.integers(len(whole))] if i % 3 == 0 else changed)
        try:
            # what opens may fail where its pixels are
            film = open_array(path)
            film.read(range(len(film)))
        except VideoError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 500


def test_pixels_that_do_not_unpack_are_named(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    path = write_arrays(tmp_path, [draw.integers(0, 16, (16, 64, 64, 3), np.uint8)]) / "000000.npz"
    film = open_array(path)
    held = bytearray(path.read_bytes())
    held[len(held) // 2 : len(held) // 2 + 500] = bytes(500)
    path.write_bytes(held)
    with pytest.raises(VideoError, match=r"000000\.npz: does not decode: "):
        open_array(path).read(range(len(film)))


def test_a_samples_file_of_another_kind_is_named(tmp_path: Path) -> None:
    folder = write_arrays(tmp_path, [numbered(0, 4), numbered(1, 4)])
    (folder / "samples.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"samples.json must be what `latte-fast sample` wrote"):
        open_samples(folder)
