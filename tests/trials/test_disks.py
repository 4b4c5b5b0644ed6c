"""Full and read-only disks under every command: one line with the path, nothing finished lost, nothing half-written.

A disk of 2 MB needs the right to mount; without it the trial skips.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.trials.commands import COMMANDS, MORE, contents, prepare, prepare_more, run

pytestmark = pytest.mark.slow
ALL = COMMANDS | MORE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_more(prepare(tmp_path_factory.mktemp("disks") / "home"))


@contextmanager
def disk(place: Path, *options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("no right to mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, room: int) -> None:
    """Leaves so many bytes on a disk."""
    held = os.statvfs(place)
    with (place / "filler").open("wb", buffering=0) as filler:
        for _ in range(held.f_bavail - room // held.f_frsize):
            filler.write(bytes(held.f_frsize))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("room", [0, 8, 60, 200, 900])
def test_full(folder: Path, name: str, room: int) -> None:
    """A disk of 2 MB, or one that holds a run, with so many KB left."""
    with disk(folder / "small", "size=8m" if "resume" in name else "size=2m") as place:
        if "resume" in name:
            shutil.copytree(folder / "run", place / "x")
        kept = contents(place) if "resume" in name else {}
        fill(place, room * 1024)
        ended = run(folder, *ALL[name]("small/x"))
        assert not ended.crashed, ended.said
        if ended.code:
            assert "No space left" in ended.last and "small" in ended.last and ended.last.startswith(name.split()[0])
        left = [p for p in contents(place) if ".partial" in p or p.endswith(".lock")]
        assert not left, left
        for file, held in kept.items():
            if "checkpoints" in file and (place / file).parent.exists() and ended.code:
                assert (place / file).read_bytes() == held, f"{file} is lost"
        print(f"| {name} | {room} KB left | {ended.code} | {ended.last[:110]} |")


@pytest.mark.parametrize("name", ALL)
def test_read_only(folder: Path, name: str) -> None:
    with disk(folder / "frozen", "size=4m") as place:
        if "resume" in name:
            shutil.copytree(folder / "run", place / "x")
        before = contents(place)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        ended = run(folder, *ALL[name]("frozen/x"))
        assert not ended.crashed, ended.said
        assert ended.code == 1 and "frozen" in ended.last and ended.last.startswith(name.split()[0]), ended.said
        assert contents(place) == before
        print(f"| {name} | read-only | {ended.code} | {ended.last[:110]} |")
