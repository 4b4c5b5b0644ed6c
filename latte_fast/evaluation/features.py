"""A detector's features of everything chosen of a set, a batch at a time."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.detector import Detector
from latte_fast.evaluation.frechet import blocks, regroup
from latte_fast.evaluation.selection import Choice
from latte_fast.media.picture import fit
from latte_fast.media.video import VideoError

log = logging.getLogger("latte_fast.evaluation")


class Pieces(Dataset):
    """Each piece's pixels, uint8: (1, F, 3, S, S) of a clip, (n, 3, S, S) of frames; or why it does not decode.

    And the height and width that it had.
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
    """(n, D) features in the order of the choice; so far, `broken` films were left out, `sizes` of films were met."""

    def __init__(self, name: str, choice: Choice, detector: Detector, how: Evaluation) -> None:
        self.name, self.choice, self.detector, self.how = name, choice, detector, how
        self.broken: list[str] = []
        self.sizes: set[tuple[int, int]] = set()

    def __iter__(self) -> Iterator[Tensor]:
        with tqdm(total=self.choice.count, desc=self.name, unit=self.how.unit, disable=None) as bar:
            for x in regroup(self._pixels(), self.how.of("batch")):
                yield self.detector(x)
                bar.update(len(x))

    def _pixels(self) -> Iterator[Tensor]:
        pieces = Pieces(self.choice, self.how.size)
        # batches are made here: a piece may hold fewer frames than one, or more
        loader = DataLoader(pieces, batch_size=None, num_workers=self.how.workers)
        for number, (x, *size) in enumerate(loader):
            if isinstance(x, Tensor):
                self.sizes.add((size[0], size[1]))
                yield x
                continue
            if self.choice.films.strict:
                raise VideoError(x)
            log.warning("left out: %s", x)
            self.broken.append(self.choice.films.name(self.choice.pieces[number].film))


def first_size(choice: Choice) -> list[int]:
    """Height and width of the first frame chosen, before it is scaled."""
    piece = choice.pieces[0]
    try:
        return list(choice.films.films[piece.film].read(piece.places[:1]).shape[1:3])
    except VideoError:
        if choice.films.strict:
            raise
        return []


def gather(features: Features) -> Tensor:
    """All of them, in float64."""
    return torch.cat(list(blocks(features)))
