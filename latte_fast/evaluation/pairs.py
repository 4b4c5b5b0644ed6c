"""Rows of pixels: films of the same names compared frame by frame, and single films by themselves."""

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.detector import Detector, exact_convolutions
from latte_fast.evaluation.features import Item, name_broken, read_items
from latte_fast.evaluation.film_sets import FilmSet
from latte_fast.evaluation.parts import Part, divide
from latte_fast.evaluation.pixels import flicker, psnr, ssim
from latte_fast.evaluation.selection import Choice, Piece, digest

MEASURES: dict[str, Callable[..., Tensor]] = {"psnr": psnr, "ssim": ssim, "flicker": flicker}


class Films:
    """Computes one number a film, the mean over its frames, as a `Source` of parts.

    Args:
        name: name of the set.
        choice: clips that are measured.
        other: clips of the same names, or None where a film is measured by itself.
        detector: network of LPIPS; None for the other metrics.
        config: settings of the measurement.
    """

    def __init__(
        self, name: str, choice: Choice, other: Choice | None, detector: Detector | None, config: Evaluation
    ) -> None:
        self.name, self.choice, self.other, self.detector, self.config = name, choice, other, detector, config
        self.parts = divide([1] * len(choice.pieces))

    def identity(self) -> dict[str, Any]:
        network = self.detector.sha256 if self.detector else ""
        other = digest(self.other) if self.other else ""
        asked = {"metric": self.config.metric, "detector": network, "size": self.config.side}
        return asked | {"set": digest(self.choice), "other": other}

    def compute(self, numbers: list[int], shown: bool) -> Iterator[Part]:
        pieces = [i for number in numbers for i in self.parts[number]]
        items = read_items(self.choice, self.config, pieces)
        others = read_items(self.other, self.config, pieces) if self.other else None
        with tqdm(total=len(pieces), desc=self.name, unit="film", disable=None if shown else True) as bar:
            for number in numbers:
                part, rows = Part(torch.empty(0, 1)), []
                for i in self.parts[number]:
                    row = self._row(i, next(items), next(others) if others else None, part)
                    rows += [] if row is None else [row]
                    bar.update()
                part.rows = torch.stack(rows) if rows else torch.empty(0, 1)
                yield part

    def _row(self, number: int, item: Item, other: Item | None, part: Part) -> Tensor | None:
        x, names, reasons, height, width = item
        for choice, why in ((self.choice, reasons), (self.other, other[2] if other else [])):
            if why and choice is not None:
                part.broken.append(name_broken(choice, choice.pieces[number], why))
        if x is None or (other is not None and other[0] is None):
            return None
        part.sizes.add((height, width))
        clips = [x[0]] if other is None else [x[0], other[0][0]]
        if len({clip.shape[-2:] for clip in clips}) > 1:
            got = " and ".join("x".join(map(str, clip.shape[-2:])) for clip in clips)
            raise ValueError(f"evaluate: films must be as large as those of their names, got {got} for {names[0]}")
        found = self._measure(clips)
        if not found.isfinite().all():
            raise ValueError(f"evaluate: {self.config.metric} must be finite, got others for {names[0]}")
        return found.double().mean()[None]

    def _measure(self, clips: list[Tensor]) -> Tensor:
        """Returns one number a frame, or a step from frame to frame, of clips (F, 3, H, W)."""
        if self.detector is None:
            return MEASURES[self.config.metric](*(clip.float() / 255 for clip in clips))
        return perceptual(self.detector, *clips)


@torch.no_grad()
def perceptual(detector: Detector, x: Tensor, y: Tensor) -> Tensor:
    """Returns the distance of each pair of frames by a network that takes both in [-1, 1]."""
    pair = [clip.to(detector.device).float() / 127.5 - 1 for clip in (x, y)]
    network: Any = detector.network
    try:
        with exact_convolutions():
            found = network(*pair)
    except (RuntimeError, torch.jit.Error) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"evaluate: detector must be called {detector.call}, got from it: {reason}") from error
    if not isinstance(found, Tensor) or found.numel() != len(x):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"evaluate: detector must give {detector.call.output} for {len(x)} pairs, got {got}")
    return found.flatten().cpu()


def choose_pairs(samples: Choice, real: FilmSet) -> Choice:
    """Chooses from `real` the same frames of the films of the same names; raises ValueError unless all have one."""
    own, others = (stems(films) for films in (samples.films, real))
    if own.keys() != others.keys():
        odd = sorted(own.keys() ^ others.keys())
        where = samples.films.root if odd[0] in own else real.root
        got = f"{len(own)} and {len(others)} films; {odd[0]} is in {where} alone"
        raise ValueError(f"evaluate: samples and real must have films of the same names, got {got}")
    names = {number: name for name, number in own.items()}
    pieces = [Piece(others[names[piece.film]], piece.places) for piece in samples.pieces]
    for piece in pieces:
        if piece.places[-1] >= len(real.films[piece.film]):
            rule = f"have at least {piece.places[-1] + 1} frames in each film"
            got = f"{len(real.films[piece.film])} in {real.name(piece.film)}"
            raise ValueError(f"evaluate: real must {rule}, as samples have, got {got}")
    return Choice(real, pieces)


def stems(films: FilmSet) -> dict[str, int]:
    """Returns each film's number by its path without the ending, so that npz may be compared with mp4."""
    found: dict[str, int] = {}
    for number, film in enumerate(films.films):
        name = films.name(number)
        # a folder of pictures has no ending
        stem = name if film.place.pictures else PurePosixPath(name).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(f"evaluate: films must differ in more than their ending, got {stem} twice in {films.root}")
        found[stem] = number
    return found
