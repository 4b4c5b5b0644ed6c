"""One writer a folder: a second is refused by name, and a lock that was left behind is no obstacle."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from latte_fast import locks
from latte_fast.locks import LOCK, FolderInUse, one_writer, one_writer_of
from tests.helpers.forks import finish, fork


def refused(folder: Path) -> None:
    with pytest.raises(FolderInUse, match=r"sample: out must have one writer.*`latte-fast train`, process \d+ on"):
        one_writer(folder, "sample").__enter__()


def test_one_process_and_thread_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with one_writer(folder, "train"), one_writer(folder, "train"):
        finish(fork(lambda: refused(folder)))
        caught: list[BaseException] = []

        def other() -> None:
            try:
                with one_writer(folder, "sample"):
                    pass
            except FolderInUse as error:
                caught.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert caught and (folder / LOCK).exists()
        finish(fork(lambda: refused(folder)))  # the thread's refusal did not free it
    assert not folder.exists()
    with one_writer(folder, "train"):
        (folder / "kept").write_text("x")
    assert [p.name for p in folder.iterdir()] == ["kept"]


def test_a_killed_owner_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def killed() -> None:
        with one_writer(folder, "train"):
            (folder / ".a.json.xxxx.partial.json").write_text("half")
            os.kill(os.getpid(), 9)

    os.waitpid(fork(killed), 0)
    assert (folder / LOCK).exists()
    with one_writer(folder, "train"):
        assert [p.name for p in folder.iterdir()] == [LOCK]


@pytest.mark.parametrize("kernel", [True, False])
def test_owners_that_the_kernel_does_not_know(tmp_path: Path, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another host they live while they renew the lock; without locks on this host, while their process does."""
    if not kernel:
        monkeypatch.setattr(locks, "fcntl", None)
    lock = tmp_path / LOCK
    mine = {"command": "train", "pid": os.getpid(), "host": socket.gethostname()}
    begun = {"began": locks._began(os.getpid())}
    for owner, age, alive in (
        (mine | {"host": "elsewhere"}, 0, True),
        (mine | {"host": "elsewhere"}, 2 * locks.LEFT_BEHIND, False),
        (mine | begun, 0, not kernel),
        (mine | {"began": 1}, 0, False),
        (mine | {"pid": 2**22 + 1, "began": 5}, 0, False),
        ({}, 0, False),
    ):
        lock.write_text(json.dumps(owner))
        os.utime(lock, (lock.stat().st_mtime - age,) * 2)
        if alive:
            refused(tmp_path)
            continue
        with one_writer(tmp_path, "sample"):
            assert json.loads(lock.read_text())["command"] == "sample"
        assert not lock.exists()


def test_of_a_file_beside_others(tmp_path: Path) -> None:
    with one_writer_of(tmp_path / "a.pt", "convert"), one_writer_of(tmp_path / "b.pt", "convert"):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".a.pt.lock", ".b.pt.lock"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="encode: out must be a folder, got the file"):
        one_writer(tmp_path / "file", "encode").__enter__()
