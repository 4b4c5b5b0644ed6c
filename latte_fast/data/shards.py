"""Folders of safetensors shards with an index, written shard by shard so that a stopped run can be resumed.

An index holds version, done, complete, shards ([name, bytes, sha256] each), the fields that its contents need, and its
own sha256. Version 1, which is still read, has neither checksum.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from latte_fast.data.index_checks import check_fields, is_count, is_text
from latte_fast.files import atomic, sha256_of

INDEX = "index.json"
MEGABYTE = 1_000_000
VERSION = 2
_SHARD = re.compile(r"\d{5,}\.safetensors")


@dataclass(frozen=True)
class Contents:
    """The kind of contents of a folder of shards.

    Args:
        name: name in the errors of its readers.
        command: command that writes it.
        unit: unit of progress, and the field of the index that holds these items or their number.
        check: function that raises ValueError where the fields of an index contradict each other.
        fields: further fields of the index: what each must be, and the test of it.
    """

    name: str
    command: str
    unit: str
    check: Callable[[dict[str, Any], str], None]
    fields: dict[str, tuple[str, Callable[[Any], bool]]]
    version: int = VERSION

    def load(self, folder: Path) -> dict[str, Any]:
        """Reads the index of a folder, complete or not, and checks everything in it."""
        file = folder / INDEX
        rule = f"{self.name}: {file} must be written by `latte-fast {self.command}`"
        try:
            if not file.is_file():
                raise ValueError("no regular file")
            index = json.loads(file.read_text(encoding="utf-8"))
            version = index["version"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{rule}, got {error!r}") from error
        if version not in (1, self.version):
            raise ValueError(f"{self.name}: {file} must have version {self.version}, got {version!r}")
        where = f"{self.name}: {file}"
        common = {
            "done": ("a number of items", is_count),
            "complete": ("true or false", lambda x: isinstance(x, bool)),
            "shards": ("a list of names like 00000.safetensors, bytes and checksums", _are_shards),
            "digest": ("text", is_text),
        }
        check_fields(index, common | self.fields, where)
        self.check(index, where)
        if version > 1 and index.get("sha256") != digest_of(index):
            raise ValueError(f"{where} must be as it was written, got another checksum than its own")
        return index

    def finished(self, folder: Path) -> dict[str, Any]:
        """Reads the index of a complete folder, and checks that all shards are there and whole."""
        index = self.load(folder)
        if not index["complete"]:
            more = f"`latte-fast {self.command} --resume` goes on"
            raise ValueError(f"{self.name}: {folder} must be complete, got {self.progress(index)}; {more}")
        for name, expected, *_ in index["shards"]:
            path = folder / name
            got = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
            if got != f"{expected} bytes":
                more = f"`latte-fast {self.command} --resume` makes it again"
                raise ValueError(f"{self.name}: {path} must have {expected} bytes, got {got}; {more}")
        return index

    def begun(self, out: Path, resume: bool) -> dict[str, Any] | None:
        """Returns the index of an earlier run to resume; None in a new folder."""
        if out.exists() and not out.is_dir():
            raise ValueError(f"{self.command}: out must be a folder, got the file {out}")
        rule = f"{self.command}: out must be a new or empty folder"
        if not (out / INDEX).exists():
            left = [p for p in out.iterdir() if not (resume and p.suffix == ".safetensors")] if out.is_dir() else []
            if any(not p.name.startswith(".") for p in left):
                raise ValueError(f"{rule}, got {out}, which has files in it")
            return None
        index = self.load(out)
        if not resume:
            state = "whole" if index["complete"] else f"{self.progress(index)}; give resume to go on"
            raise ValueError(f"{rule}, got {out}, which holds {self.name}: {state}")
        if index["version"] == 1:
            # its shards get the checksums that they have now
            index["version"] = self.version
            index["shards"] = [[*row, sha256_of(out / row[0]) if (out / row[0]).is_file() else ""]
                               for row in index["shards"]]  # fmt: skip
        return index

    def check_same(self, index: dict[str, Any], settings: dict[str, Any], out: Path) -> None:
        """Checks that a resumed run has the settings it began with; the digest stands for its videos or captions."""
        for name, setting in settings.items():
            if name not in index:
                raise ValueError(f"{self.command}: {out / INDEX} must hold {name}, to go on, got an index without")
            if index[name] != setting:
                what = f"the same {self.unit}" if name == "digest" else f"{index[name]}, as before"
                raise ValueError(f"{self.command}: {name} must be {what}, to go on in {out}, got {setting}")

    def progress(self, index: dict[str, Any]) -> str:
        total = index[self.unit]
        return f"{index['done']} of {total if isinstance(total, int) else len(total)} {self.unit}"


def _are_shards(rows: Any) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) in (2, 3)
        and row[0] == f"{number:05d}.safetensors"
        and is_count(row[1])
        and all(is_text(x) for x in row[2:])
        for number, row in enumerate(rows)
    )


def digest_of(index: dict[str, Any]) -> str:
    """Returns the checksum of an index, which it holds itself."""
    held = {name: value for name, value in index.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def damaged(out: Path, index: dict[str, Any]) -> list[int]:
    """Returns the numbers of shards that are missing, or not as they were written."""
    wrong = []
    for number, (name, size, digest) in enumerate(index["shards"]):
        path = out / name
        whole = path.is_file() and path.stat().st_size == size and sha256_of(path) == digest
        wrong += [] if whole else [number]
    return wrong


def remove_unlisted(out: Path, index: dict[str, Any]) -> None:
    """Removes shards that a stopped run wrote and did not list."""
    listed = {row[0] for row in index["shards"]}
    for path in out.glob("*.safetensors"):
        if _SHARD.fullmatch(path.name) and path.name not in listed:
            path.unlink()


def is_full(shard: dict[str, Tensor], megabytes: int) -> bool:
    return sum(x.nbytes for x in shard.values()) >= megabytes * MEGABYTE


def write(out: Path, index: dict[str, Any], shard: dict[str, Tensor], done: int, last: bool) -> None:
    """Writes the shard, then the index that names it: a stop in between loses the shard and nothing else."""
    if shard:
        index["shards"].append(write_shard(out, len(index["shards"]), shard))
    index["done"], index["complete"] = done, last
    write_index(out, index)


def write_shard(out: Path, number: int, shard: dict[str, Tensor]) -> list[Any]:
    """Writes a shard; returns its row in the index."""
    name = f"{number:05d}.safetensors"
    with atomic(out / name) as partial:
        save_file(shard, partial)
        row = [name, partial.stat().st_size, sha256_of(partial)]
    return row


def write_index(out: Path, index: dict[str, Any]) -> None:
    index["sha256"] = digest_of(index)
    with atomic(out / INDEX) as partial:
        partial.write_text(json.dumps(index))
