"""Files that appear whole or not at all, and errors of the disk that name the file."""

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

# part of the name of a file that is being written; a folder's next writer removes those that a stop left behind
PARTIAL = ".partial"
# bytes left on a disk below which a failed write is laid to a full disk
FULL = 1 << 16


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary file beside `path`, flushed to disk and renamed to it on success, removed on failure.

    What the disk refuses is raised as an OSError that names `path`.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL + path.suffix)
        os.close(handle)
        partial = Path(name)
        try:
            # the error is read while the partial file still fills the disk
            with naming(path):
                yield partial
                with partial.open("rb") as written:
                    os.fsync(written.fileno())
            # mkstemp's 0600 would lock out everyone else who may read the folder
            mask = os.umask(0)
            os.umask(mask)
            partial.chmod(0o666 & ~mask)
            os.replace(partial, path)
            _sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Raises what a disk refuses inside as an OSError that names `path`, whichever library met it."""
    try:
        yield
    except BaseException as error:
        number = _refusal(error, Path(path))
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _refusal(error: BaseException, path: Path) -> int | None:
    """Returns the errno of an error of the disk, None for other errors."""
    if not isinstance(error, Exception) and type(error).__name__ != "CheckpointException":
        return None  # a stop
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))  # Rust's, of safetensors
    if found:
        return int(found[1])
    if os.strerror(errno.ENOSPC) in str(error):
        return errno.ENOSPC
    # torch's writers give no reason; their CheckpointException is no Exception
    unexplained = isinstance(error, RuntimeError) or not isinstance(error, Exception)
    return errno.ENOSPC if unexplained and is_full(path.parent) else None


def is_full(folder: Path) -> bool:
    try:
        held = os.statvfs(folder)
    except OSError:
        return False
    return held.f_bavail * held.f_frsize < FULL


def sha256_of(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Flushes a folder to disk, and with it a rename inside; does nothing where folders can't be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
