"""Rows of a set in parts: spread over ranks, kept in files, and read in one order whoever computed them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latte_fast.distributed.ranks import Ranks
from latte_fast.files import atomic

# rows in a part: whatever the batch and the number of ranks, batches end where parts end
ROWS = 128
VERSION = 1
KEY = "evaluation"


@dataclass
class Part:
    """Rows (n, D) of some consecutive pieces of a set, films that do not decode, and the sizes of the rest."""

    rows: Tensor
    broken: list[str] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)


class Source(Protocol):
    """What computes the rows of a set, part by part."""

    name: str  # of the set, in file names
    parts: list[range]  # the pieces of each part

    def identity(self) -> dict[str, Any]:
        """Returns plain values that the rows follow from."""
        ...

    def compute(self, numbers: list[int], shown: bool) -> Iterator[Part]:
        """Yields these parts, in this order; shows its progress if asked to."""
        ...


def divide(counts: Sequence[int]) -> list[range]:
    """Divides pieces, of so many rows each, into parts of at least ROWS rows, the last one apart."""
    found, start, held = [], 0, 0
    for i, count in enumerate(counts):
        held += count
        if held >= ROWS:
            found.append(range(start, i + 1))
            start, held = i + 1, 0
    return [*found, range(start, len(counts))] if start < len(counts) else found


class Collected:
    """Iterates over the parts of a source in order.

    Without a folder they are computed as they are asked for. With one, `fill` computes this rank's share of those that
    are not there yet, and the parts are read from their files.
    """

    def __init__(self, source: Source, ranks: Ranks, folder: str | Path = "") -> None:
        self.source, self.ranks = source, ranks
        self.broken: list[str] = []
        self.sizes: set[tuple[int, int]] = set()
        self.key = digest({"version": VERSION, "rows": ROWS, **source.identity()}) if folder else ""
        self.folder = Path(folder) / f"{source.name}-{self.key[:16]}" if folder else None

    def fill(self) -> None:
        if self.folder is None:
            return
        mine = [n for n in range(self.ranks.rank, len(self.source.parts), self.ranks.count) if self._read(n) is None]
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, part in zip(mine, self.source.compute(mine, self.ranks.first), strict=True):
            self._write(number, part)

    def __iter__(self) -> Iterator[Tensor]:
        """Yields the rows of each part; notes the broken films and the sizes of all."""
        numbers = list(range(len(self.source.parts)))
        for part in self.source.compute(numbers, True) if self.folder is None else map(self._whole, numbers):
            self.broken += part.broken
            self.sizes |= part.sizes
            yield part.rows

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}.safetensors"

    def _write(self, number: int, part: Part) -> None:
        held = json.dumps({"key": self.key, "broken": part.broken, "sizes": sorted(part.sizes)})
        with atomic(self._path(number)) as partial:
            save_file({"rows": part.rows.contiguous()}, partial, metadata={KEY: held})

    def _read(self, number: int) -> Part | None:
        """Returns a part whose file is whole and of these very rows, or None."""
        try:
            with safe_open(self._path(number), "pt") as file:
                held = json.loads((file.metadata() or {})[KEY])
                if held["key"] != self.key:
                    return None
                return Part(file.get_tensor("rows"), held["broken"], {(h, w) for h, w in held["sizes"]})
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            return None

    def _whole(self, number: int) -> Part:
        part = self._read(number)
        if part is None:
            raise RuntimeError(f"evaluate: {self._path(number)} was changed meanwhile; give the command again")
        return part


def fill_all(sources: Sequence[Collected], ranks: Ranks) -> None:
    """Computes what is missing of all sources on all ranks; where one rank fails, all raise."""
    wrong: Exception | None = None
    try:
        for source in sources:
            source.fill()
    except Exception as error:
        wrong = error
    if ranks.any(wrong is not None):
        raise wrong or RuntimeError("evaluate: another process failed, which says why")


def digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
