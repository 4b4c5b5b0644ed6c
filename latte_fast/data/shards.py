"""Folders of safetensors shards with an index, written shard by shard so that a stopped run can be resumed.

An index holds version, done, complete, shards ([name, bytes] each), and the fields that its contents need.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from latte_fast.files import atomic

INDEX = "index.json"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Contents:
    """The kind of contents of a folder of shards.

    Args:
        name: name in the errors of its readers.
        command: command that writes it.
        version: version of its index.
        unit: unit of progress, and the field of the index that holds these items or their number.
        needed: further fields of the index.
    """

    name: str
    command: str
    version: int
    unit: str
    needed: tuple[str, ...] = ()

    def load(self, folder: Path) -> dict[str, Any]:
        """Reads the index of a folder, complete or not, and checks its version and fields."""
        file = folder / INDEX
        try:
            index = json.loads(file.read_text())
            version = index["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            rule = f"be written by `latte-fast {self.command}`"
            raise ValueError(f"{self.name}: {file} must {rule}, got {error!r}") from error
        if version != self.version:
            raise ValueError(f"{self.name}: {file} must have version {self.version}, got {version}")
        missing = [field for field in (self.unit, "done", "complete", "shards", *self.needed) if field not in index]
        if missing:
            raise ValueError(f"{self.name}: {file} must hold {missing[0]}, got an index without")
        return index

    def finished(self, folder: Path) -> dict[str, Any]:
        """Reads the index of a complete folder, and checks that all shards are there and whole."""
        index = self.load(folder)
        if not index["complete"]:
            more = f"`latte-fast {self.command} --resume` goes on"
            raise ValueError(f"{self.name}: {folder} must be complete, got {self.progress(index)}; {more}")
        for name, expected in index["shards"]:
            path = folder / name
            got = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
            if got != f"{expected} bytes":
                raise ValueError(f"{self.name}: {path} must have {expected} bytes, got {got}")
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


def is_full(shard: dict[str, Tensor], megabytes: int) -> bool:
    return sum(x.nbytes for x in shard.values()) >= megabytes * MEGABYTE


def write(out: Path, index: dict[str, Any], shard: dict[str, Tensor], done: int, last: bool) -> None:
    """Writes the shard, then the index that names it: a stop in between loses the shard and nothing else."""
    if shard:
        name = f"{len(index['shards']):05d}.safetensors"
        with atomic(out / name) as partial:
            save_file(shard, partial)
        index["shards"].append([name, (out / name).stat().st_size])
    index["done"], index["complete"] = done, last
    with atomic(out / INDEX) as partial:
        partial.write_text(json.dumps(index))
