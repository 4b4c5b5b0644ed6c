"""Decodes the clips or frames chosen from a set and computes their features, batch by batch."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from latte_fast.data.workers import leave_signals, read_all
from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.detector import Detector
from latte_fast.evaluation.frechet import blocks, regroup
from latte_fast.evaluation.selection import Choice
from latte_fast.media.picture import fit
from latte_fast.media.video import VideoError

log = logging.getLogger("latte_fast.evaluation")


class Pieces(Dataset):
    """Items (pixels, height, width) of pieces; pixels are uint8, (1, F, 3, S, S) of a clip, (n, 3, S, S) of frames.

    Height and width are those of the file. A piece that does not decode gives the reason in the place of its pixels.
    """

    def __init__(self, choice: Choice, size: int) -> None:
        self.choice, self.size = choice, size

    def __len__(self) -> int:
        return len(self.choice.pieces)

    def __getitem__(self, number: int) -> tuple[Tensor | str, int, int]:
        piece = self.choice.pieces[number]
        try:
            read = self.choice.films.films[piece.film].read(piece.places)
        except VideoError as error:
            return str(error), 0, 0
        frames = fit(read, self.size)
        return frames[None] if self.choice.clips else frames, *read.shape[1:3]


class Features:
    """Iterates over features (n, D) of a choice in order; notes `broken` films and the `sizes` of the others."""

    def __init__(self, name: str, choice: Choice, detector: Detector, config: Evaluation) -> None:
        self.name, self.choice, self.detector, self.config = name, choice, detector, config
        self.broken: list[str] = []
        self.sizes: set[tuple[int, int]] = set()

    def __iter__(self) -> Iterator[Tensor]:
        with tqdm(total=self.choice.count, desc=self.name, unit=self.config.unit, disable=None) as bar:
            for x in regroup(self._pixels(), self.config.setting("batch")):
                yield self.detector(x)
                bar.update(len(x))

    def _pixels(self) -> Iterator[Tensor]:
        pieces = Pieces(self.choice, self.config.size)
        # the loader gives single pieces, and regroup makes the batches: a piece may hold fewer or more frames than one
        leave = leave_signals if self.config.workers else None
        loader = DataLoader(pieces, batch_size=None, num_workers=self.config.workers, worker_init_fn=leave)
        for number, (x, *size) in enumerate(read_all(loader)):
            if isinstance(x, Tensor):
                self.sizes.add((size[0], size[1]))
                yield x
                continue
            if self.choice.films.strict:
                raise VideoError(x)
            log.warning("left out: %s", x)
            self.broken.append(self.choice.films.name(self.choice.pieces[number].film))


def first_size(choice: Choice) -> list[int]:
    """Returns height and width of the first chosen frame before it is scaled."""
    piece = choice.pieces[0]
    try:
        return list(choice.films.films[piece.film].read(piece.places[:1]).shape[1:3])
    except VideoError:
        if choice.films.strict:
            raise
        return []


def gather(features: Features) -> Tensor:
    """Collects all features in one float64 tensor."""
    return torch.cat(list(blocks(features)))
