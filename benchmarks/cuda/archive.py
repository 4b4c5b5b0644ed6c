"""The one archive that leaves the machine: what was measured, logs, tuned tiles, and which stages are done."""

import io
import json
import os
import re
import tarfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

FORMAT = 1
LIMIT = 16_000_000
STATE = "state.json"


class Refused(Exception):
    """Input that can't be used, named; nothing was changed."""


@dataclass
class State:
    """Of which commit and device an archive is, and how each stage ended."""

    commit: str
    device: str
    # stage -> {"status": "done", "failed" or "cut", "seconds": of all its calls, "calls": n, "commit": of the last}
    stages: dict[str, dict] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)  # for their size


def stem(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def file_name(state: State) -> str:
    return f"cuda-{stem(state.device)}-{state.commit}.tgz"


def pack(work: Path, state: State, out: Path, limit: int = LIMIT) -> Path:
    """Writes the archive whole or not at all; above the limit logs go first, then the rounds behind the medians."""
    files = sorted(p.relative_to(work) for p in work.rglob("*") if p.is_file() and p.name != STATE)
    logs = [p for p in files if p.suffix == ".log"]
    rounds = [p for p in files if p.suffix == ".rounds"]
    for gone in ([], logs, logs + rounds):
        kept = [p for p in files if p not in gone]
        state.dropped = sorted({*state.dropped, *(str(p) for p in gone)})
        content = _tar(work, kept, state)
        if len(content) <= limit:
            break
    out.mkdir(parents=True, exist_ok=True)
    path = out / file_name(state)
    partial = out / f".{path.name}.partial"
    partial.write_bytes(content)
    os.replace(partial, path)
    return path


def _tar(work: Path, files: list[Path], state: State) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        text = json.dumps({"format": FORMAT, **asdict(state)}, indent=1).encode()
        head = tarfile.TarInfo(STATE)
        head.size = len(text)
        tar.addfile(head, io.BytesIO(text))
        for path in files:
            data = (work / path).read_bytes()  # read whole: a log may grow meanwhile
            info = tarfile.TarInfo(path.as_posix())
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(path: Path) -> tuple[State, dict[str, bytes]]:
    """(state, name -> content) of an archive, or Refused with what is wrong; nothing is written."""
    if not path.is_file():
        raise Refused(f"{path}: no such archive")
    try:
        with tarfile.open(path, "r:gz") as tar:
            members = tar.getmembers()
            files = {m.name: tar.extractfile(m).read() for m in members if m.isfile()}  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise Refused(f"{path}: half-written, or no archive of `make cuda`: {error}") from None
    outside = [n for n in files if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]
    try:
        content = json.loads(files.pop(STATE))
        if content.pop("format") != FORMAT or outside or len(members) != len(files) + 1:
            raise ValueError("another format")
        return State(**content), files
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Refused(f"{path}: no archive of `make cuda`: {error!r}") from None


def unpack(path: Path, work: Path, commit: str, device: str) -> State:
    """Fills the work folder from an archive of this commit and device."""
    state, files = read(path)
    if state.commit != commit:
        raise Refused(f"{path}: of commit {state.commit}, and these sources are {commit}")
    if state.device != device:
        raise Refused(f"{path}: measured on {state.device}, and this is {device}; without ARCHIVE a new one begins")
    for name, content in files.items():
        target = work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return state
