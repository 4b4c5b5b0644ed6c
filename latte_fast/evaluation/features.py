"""Decodes the clips or frames chosen from a set and computes their features, batch by batch."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from latte_fast.data.workers import leave_signals, read_all
from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.detector import Detector
from latte_fast.evaluation.frechet import blocks, regroup
from latte_fast.evaluation.parts import Part, divide
from latte_fast.evaluation.selection import Choice, Piece, digest
from latte_fast.media.picture import fit
from latte_fast.media.video import VideoError

log = logging.getLogger("latte_fast.evaluation")
# pixels, the names of the frames or clips in them, reasons of those that do not decode, height and width of the file
Item = tuple[Tensor | None, list[str], list[str], int, int]


class Pieces(Dataset):
    """Items of pieces; pixels are uint8, (1, F, 3, S, S) of a clip, (n, 3, S, S) of frames; S 0 leaves their own sides.

    A clip that does not decode has no pixels but a reason; of frames, those that do not decode are left out.
    """

    def __init__(self, choice: Choice, size: int, numbers: Sequence[int] | None = None) -> None:
        self.choice, self.size = choice, size
        self.numbers = range(len(choice.pieces)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Item:
        piece = self.choice.pieces[self.numbers[index]]
        name = self.choice.films.name(piece.film)
        if self.choice.clips:
            found, reasons = self._frames(piece.film, piece.places)
            return (None, [], reasons, 0, 0) if found is None else (found[0][None], [name], [], *found[1])
        found, reasons = self._frames(piece.film, piece.places)
        if found is not None:
            return found[0], [f"{name} frame {place}" for place in piece.places], [], *found[1]
        single = [(place, *self._frames(piece.film, [place])) for place in piece.places]
        kept = [(place, one) for place, one, _ in single if one is not None]
        reasons = [f"frame {place}: {why[0]}" for place, _, why in single if why]
        if not kept:
            return None, [], reasons, 0, 0
        pixels = torch.cat([one[0] for _, one in kept])
        return pixels, [f"{name} frame {place}" for place, _ in kept], reasons, *kept[0][1][1]

    def _frames(self, film: int, places: Sequence[int]) -> tuple[tuple[Tensor, tuple[int, int]] | None, list[str]]:
        try:
            read = self.choice.films.films[film].read(places)
        except VideoError as error:
            return None, [str(error)]
        height, width = read.shape[1:3]
        pixels = fit(read, self.size) if self.size else torch.from_numpy(read).permute(0, 3, 1, 2).contiguous()
        return (pixels, (height, width)), []


class Features:
    """Computes the features of a choice by a detector, as a `Source` of parts."""

    def __init__(self, name: str, choice: Choice, detector: Detector, config: Evaluation) -> None:
        self.name, self.choice, self.detector, self.config = name, choice, detector, config
        self.parts = divide([1 if choice.clips else len(piece.places) for piece in choice.pieces])

    def identity(self) -> dict[str, Any]:
        config = self.config
        asked = {"size": config.side, "batch": config.setting("batch"), "device": config.device.split(":")[0]}
        return {"metric": config.metric, "detector": self.detector.sha256, "set": digest(self.choice), **asked}

    def compute(self, numbers: list[int], shown: bool) -> Iterator[Part]:
        pieces = [i for number in numbers for i in self.parts[number]]
        items = read_items(self.choice, self.config, pieces)
        total = count_rows(self.choice, pieces)
        with tqdm(total=total, desc=self.name, unit=self.config.unit, disable=None if shown else True) as bar:
            for number in numbers:
                yield self._part(islice(items, len(self.parts[number])), number, bar)

    def _part(self, items: Iterator[Item], number: int, bar: Any) -> Part:
        part = Part(torch.empty(0, 0))
        names: list[str] = []
        rows: list[Tensor] = []

        def pixels() -> Iterator[Tensor]:
            for i, (x, own, reasons, height, width) in zip(self.parts[number], items, strict=True):
                if reasons:
                    part.broken.append(name_broken(self.choice, self.choice.pieces[i], reasons))
                if x is not None:
                    part.sizes.add((height, width))
                    names.extend(own)
                    yield x

        for x in regroup(pixels(), self.config.setting("batch")):
            rows.append(self.detector(x, names[: len(x)]))
            del names[: len(x)]
            bar.update(len(x))
        part.rows = torch.cat(rows) if rows else torch.empty(0, self.detector.width or 0)
        return part


def read_items(choice: Choice, config: Evaluation, numbers: Sequence[int]) -> Iterator[Item]:
    """Yields the items of these pieces in order, decoded by the workers."""
    # the loader gives single pieces, and regroup makes the batches: a piece may hold fewer or more frames than one
    leave = leave_signals if config.workers else None
    pieces = Pieces(choice, config.side, numbers)
    return read_all(DataLoader(pieces, batch_size=None, num_workers=config.workers, worker_init_fn=leave))


def count_rows(choice: Choice, numbers: Sequence[int]) -> int:
    return len(numbers) if choice.clips else sum(len(choice.pieces[i].places) for i in numbers)


def name_broken(choice: Choice, piece: Piece, reasons: list[str]) -> str:
    """Logs why a clip or some frames are left out; returns the film's name."""
    for reason in reasons:
        log.warning("left out: %s", reason)
    return choice.films.name(piece.film)


def first_size(choice: Choice) -> list[int]:
    """Returns height and width of the first chosen frame that decodes, before it is scaled."""
    for piece in choice.pieces:
        try:
            return list(choice.films.films[piece.film].read(piece.places[:1]).shape[1:3])
        except VideoError:
            continue
    return []


def gather(parts: Iterable[Tensor]) -> Tensor:
    """Collects all rows in one float64 tensor."""
    return torch.cat(list(blocks(parts)))
