"""Files that appear whole or not at all, also when the machine stops, and that others may read."""

import os
import stat
from pathlib import Path

import pytest

from latte_fast.files import atomic


def test_atomic_replaces_on_success_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.json"
    with atomic(path) as partial:
        # hidden, so that whoever walks the folder meanwhile takes it for no file of its kind
        assert partial.parent == path.parent and partial.name.startswith(".a.json.") and partial.suffix == ".json"
        partial.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(KeyError), atomic(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "first" and [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_atomic_leaves_the_rights_of_any_new_file(mask: int, mode: int, tmp_path: Path) -> None:
    """A temporary file's own would lock out everyone else who may read the folder."""
    before = os.umask(mask)
    try:
        with atomic(tmp_path / "a.json") as partial:
            partial.write_text("x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode


def test_atomic_is_on_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then name, then the folder that holds the name; and a run that saves for weeks keeps no file open."""
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else os.fstat(handle).st_size)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *args: done.append("name") or replace(*args))
    free = os.dup(0)
    os.close(free)
    with atomic(tmp_path / "a.json") as partial:
        partial.write_text("four")
    assert done == [4, "name", "folder"]
    again = os.dup(0)
    os.close(again)
    assert again == free
