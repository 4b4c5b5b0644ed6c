"""One writer a folder: a lock with its owner's process and host, and how a lock that was left behind is told apart.

The lock is a file inside the folder, locked by the kernel for as long as its owner lives: on one host, and on file
systems that pass locks on to other hosts, a dead owner's lock is free at once. Where they do not, the owner's process
is looked for on its own host, and other hosts go by the file's time, which the owner renews.
"""

import contextlib
import errno
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latte_fast.files import PARTIAL, naming

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".latte_fast.lock"
# seconds between renewals, and without one until another host takes a lock for left behind
RENEWED, LEFT_BEHIND = 15.0, 90.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# path -> (process, thread) that holds it; a lock of the kernel belongs to a process, and would let its threads in
_held: dict[str, tuple[int, int]] = {}


class FolderInUse(ValueError):
    """Raised where another process writes to the folder or file; the message names it."""


@contextlib.contextmanager
def one_writer(folder: str | os.PathLike, command: str, name: str = LOCK) -> Iterator[None]:
    """Holds a folder for this thread, or raises FolderInUse; may be nested.

    The folder is made, and on the way out removed again if nothing was written. Partial files of a writer that was
    killed are removed.

    Args:
        folder: folder that is written to.
        command: command on whose behalf, for messages.
        name: name of the lock, for a writer of one file in a folder that others may write to.
    """
    folder = Path(folder)
    path, me = os.path.realpath(folder / name), (os.getpid(), threading.get_ident())
    holder = _held.get(path)
    if holder == me:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{command}: out must be a folder, got the file {folder}")
    if holder is not None and holder[0] == me[0]:
        raise FolderInUse(_sentence(command, folder, name, {"pid": me[0], "host": socket.gethostname()}))
    made = not folder.exists()
    try:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            handle = _take(folder, name, command)
    except OSError:
        _remove_made(folder, made)
        raise
    _held[path] = me
    done = threading.Event()
    threading.Thread(target=_renew, args=(path, done), daemon=True).start()
    try:
        remove_partial(folder, "" if name == LOCK else name.removesuffix(".lock") + ".")
        yield
    finally:
        done.set()
        _held.pop(path, None)
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(handle)
        _remove_made(folder, made)


def _remove_made(folder: Path, made: bool) -> None:
    if made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def one_writer_of(path: str | os.PathLike, command: str) -> contextlib.AbstractContextManager[None]:
    """Holds one file, or a folder that appears whole, by a lock beside it."""
    path = Path(path)
    return one_writer(path.parent, command, f".{path.name}.lock")


def remove_partial(folder: Path, start: str = "") -> None:
    """Removes files that a killed writer left half-written; their names begin with a dot and `start`."""
    for left in folder.iterdir():
        if left.name.startswith(start or ".") and PARTIAL in left.suffixes and left.is_file():
            left.unlink(missing_ok=True)


def _take(folder: Path, name: str, command: str) -> int:
    """Returns the open lock file once this process owns it."""
    path = folder / name
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            locks = _lock(handle)
            if locks is None or _is_alive(_owner(handle), handle, folder, locks):
                raise FolderInUse(_sentence(command, folder, name, _owner(handle)))
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(handle)):
                _sign(handle, path, command)
                return handle
        except BaseException:
            os.close(handle)
            raise
        # its owner ended, and removed it, between the opening and the lock
        os.close(handle)


def _sign(handle: int, path: Path, command: str) -> None:
    """Writes the owner into the lock, which is removed where the disk has no room for that."""
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(_me(command)).encode(), 0)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _lock(handle: int) -> bool | None:
    """Locks an open file; returns None where another process has it, False where the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return None
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _me(command: str) -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "command": command, "began": _began(pid)}


def _owner(handle: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_alive(owner: dict[str, Any], handle: int, folder: Path, locks: bool) -> bool:
    """Whether the owner that a lock names may still write, though the kernel gave the lock to this process."""
    if not owner or not isinstance(owner.get("pid"), int):
        return False
    if owner.get("host") == socket.gethostname():
        # a live owner would hold the kernel's lock, where there are locks
        return not locks and _began(owner["pid"]) == owner.get("began") is not None
    with tempfile.TemporaryFile(dir=folder) as now:  # by the clock of the file system
        return os.fstat(now.fileno()).st_mtime - os.fstat(handle).st_mtime < LEFT_BEHIND


def _began(pid: int) -> int | None:
    """Returns when a process began, in ticks, so that its number is not taken for that of a later one; None if dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return 0


def _renew(path: str, done: threading.Event) -> None:
    while not done.wait(RENEWED):
        with contextlib.suppress(OSError):
            os.utime(path)


def _sentence(command: str, folder: Path, name: str, owner: dict[str, Any]) -> str:
    place = folder if name == LOCK else folder / name.removeprefix(".").removesuffix(".lock")
    by = f"`latte-fast {owner['command']}`" if owner.get("command") else "another writer"
    who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
    return f"{command}: out must have one writer at a time, got {place}, in use by {by}, {who}"
