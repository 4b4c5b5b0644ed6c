"""What is found in a folder: which files are clips, in which order, and of which class."""

from pathlib import Path

import pytest

from latte_fast.data import DataConfig
from latte_fast.data.layouts import LayoutError, find
from latte_fast.data.sources import open_sources
from tests.helpers.films import layout


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(kind: str, root: Path) -> list[tuple[str, int | None]]:
    return [(place.path.relative_to(root).as_posix(), place.label) for place in find(kind, root)[0]]


def test_find_without_classes(tmp_path: Path) -> None:
    """Labels of flat folders would train a class-conditional model on file names."""
    flat = touch(tmp_path / "flat", "b.mp4", "a.mp4")
    assert names("videos", flat) == [("a.mp4", None), ("b.mp4", None)] and find("videos", flat)[1] == []
    with pytest.raises(LayoutError, match="ucf101: path must hold"):
        find("ucf101", flat)
    frames = touch(tmp_path / "frames", "b/1.png", "a/2.png", "a/10.png", "cover.png")
    assert names("frames", frames) == [("a", None), ("b", None)] and find("frames", frames)[1] == []
    assert find("frames", frames)[0][0].pictures == ("2.png", "10.png")


def test_find_frames_of_two_depths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="frames: path must hold"):
        find("frames", touch(tmp_path, "clip/1.png", "class/clip/1.png"))


def test_find_leaves_hidden_files_out(tmp_path: Path) -> None:
    """What other systems leave beside each film, `._a.mp4`, is no film."""
    touch(tmp_path, "a/a.mp4", "a/._a.mp4", ".trash/b.mp4", "a/notes.txt", "b/A.MP4")
    assert names("ffs", tmp_path) == [("a/a.mp4", None), ("b/A.MP4", None)]
    assert names("videos", tmp_path) == [("a/a.mp4", 0), ("b/A.MP4", 1)]


def test_split_lists_the_clips(tmp_path: Path) -> None:
    """With or without suffix and label, in the folder's order; classes keep their numbers."""
    root = layout("videos", tmp_path / "films")
    names = [place.path.relative_to(root).as_posix() for place in find("videos", root)[0]]
    (tmp_path / "train.txt").write_text(f"{names[2]} 2\n\n{names[0].removesuffix('.mp4')}\n")
    found = open_sources(DataConfig(kind="videos", path=str(root), split=str(tmp_path / "train.txt")))
    assert [source.place.path.relative_to(root).as_posix() for source in found.sources] == [names[0], names[2]]
    assert found.classes == ["a", "b"] and [source.place.label for source in found.sources] == [0, 1]
    for text, message in (("a/none.mp4\n", r"got a/none.mp4 \(1 missing\)"), ("\n", "got none")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(LayoutError, match=message):
            open_sources(DataConfig(kind="videos", path=str(root), split=str(tmp_path / "bad.txt")))
    with pytest.raises(LayoutError, match="split must be a text file"):
        open_sources(DataConfig(kind="videos", path=str(root), split=str(tmp_path / "no.txt")))
    with pytest.raises(ValueError, match="split must be empty for kind shapes"):
        DataConfig(split="x")
