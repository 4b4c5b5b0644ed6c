"""Which clips and frames of a set are measured: a function of the seed and of what is in the set alone."""

import hashlib
import json
import os
from dataclasses import dataclass

import numpy as np

from latte_fast.data.seeding import draw_places, generator
from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.film_sets import Film, FilmSet

# most frames of one film that are decoded as one piece
PIECE = 64
# bytes hashed at the start, middle and end of a file, to tell it from others of the same size
SPOT = 4096
# parts of the generator's key; START is followed by the number of a film
WHICH_REAL, WHICH_SAMPLES, START = range(3)


@dataclass(frozen=True)
class Piece:
    """Frames of one film, read together: a clip, or some of the frames that fid takes."""

    film: int
    places: list[int]


@dataclass(frozen=True)
class Choice:
    """Chosen pieces of a set, each a clip or single frames, and the number of films too short for a clip."""

    films: FilmSet
    pieces: list[Piece]
    clips: bool = True
    short: int = 0

    @property
    def count(self) -> int:
        """Number of clips, or of frames."""
        return len(self.pieces) if self.clips else sum(len(piece.places) for piece in self.pieces)


def choose_real(films: FilmSet, config: Evaluation) -> Choice:
    """Draws videos without replacement, and a start in each; of a metric of frames, single frames of all videos."""
    lengths = [len(film) for film in films.films]
    rng = generator(config.seed, WHICH_REAL)
    least = config.row.least
    if config.unit == "frame":
        return Choice(films, choose_frames(rng, lengths, config.setting("images"), least), clips=False)
    frames, interval = config.setting("frames"), config.setting("interval")
    span = (frames - 1) * interval + 1
    kept = [i for i, length in enumerate(lengths) if length >= span]
    if len(kept) < least:
        raise ValueError(
            f"evaluate: real must have at least {least} videos of {span} frames or more "
            f"({frames} frames at interval {interval}), got {len(kept)} of {len(lengths)} in {films.root}"
        )
    drawn = draw(rng, kept, config.setting("clips"))
    starts = [draw_places(generator(config.seed, START, i), lengths[i], frames, interval) for i in drawn]
    return Choice(films, [Piece(*pair) for pair in zip(drawn, starts, strict=True)], short=len(lengths) - len(kept))


def choose_samples(films: FilmSet, config: Evaluation, window: int = 0) -> Choice:
    """Chooses one clip of every sample, or of samples drawn without replacement if there are too many.

    The clip starts at the first frame, or in a later window of `config.windows` at its share of the way to the last
    clip; a metric of frames takes them from that share of each film.
    """
    lengths = [len(film) for film in films.films]
    rng = generator(config.seed, WHICH_SAMPLES)
    windows, least = config.windows, config.row.least
    if config.unit == "frame":
        if windows > 1 and min(lengths) < windows:
            at = lengths.index(min(lengths))
            rule = f"at most the frames of a film, which are {lengths[at]} in {films.name(at)}"
            raise ValueError(f"evaluate: windows must be {rule}, got {windows}")
        starts = [length * window // windows for length in lengths]
        shares = [length * (window + 1) // windows - start for length, start in zip(lengths, starts, strict=True)]
        pieces = choose_frames(rng, shares, config.setting("images"), least)
        moved = [Piece(piece.film, [starts[piece.film] + place for place in piece.places]) for piece in pieces]
        return Choice(films, moved, clips=False)
    if len(lengths) < least:
        rule = f"be at least {least} for {config.metric}"
        raise ValueError(f"evaluate: samples must {rule}, got {len(lengths)} in {films.root}")
    frames = config.setting("frames")
    if min(lengths) < frames:
        at = lengths.index(min(lengths))
        got = f"got {lengths[at]} in {films.name(at)}"
        raise ValueError(f"evaluate: samples must have at least the {frames} frames of a clip, {got}")
    if windows > 1 and min(lengths) - frames < windows - 1:
        at = lengths.index(min(lengths))
        rule = f"at most {lengths[at] - frames + 1}, the clips of {frames} frames that start apart in {films.name(at)}"
        raise ValueError(f"evaluate: windows must be {rule}, got {windows}")
    pieces = []
    for i in draw(rng, [*range(len(lengths))], config.setting("clips")):
        start = (lengths[i] - frames) * window // max(1, windows - 1)
        pieces.append(Piece(i, list(range(start, start + frames))))
    return Choice(films, pieces)


def draw(rng: np.random.Generator, numbers: list[int], count: int) -> list[int]:
    """Draws `count` of the numbers, in their own order; a larger draw contains every smaller one."""
    return sorted(numbers[i] for i in rng.permutation(len(numbers))[:count])


def choose_frames(rng: np.random.Generator, lengths: list[int], count: int, least: int = 2) -> list[Piece]:
    """Draws `count` of all frames without replacement, and groups them by film."""
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    if total < least:
        raise ValueError(f"evaluate: a set must have at least {least} frames, got {total}")
    drawn = np.sort(rng.choice(total, min(count, total), replace=False, shuffle=False))
    film = np.searchsorted(ends, drawn, side="right")
    places = drawn - (ends - lengths)[film]
    pieces = []
    for number in np.unique(film).tolist():
        own = places[film == number].tolist()
        pieces += [Piece(number, own[i : i + PIECE]) for i in range(0, len(own), PIECE)]
    return pieces


def digest(choice: Choice) -> str:
    """Returns a digest of a choice: names, frames, and the sizes and some bytes of the files they come from."""
    films = choice.films
    rows = [[films.name(p.film), p.places, digest_of_files(films.films[p.film], p.places)] for p in choice.pieces]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def digest_of_files(film: Film, places: list[int]) -> str:
    """Returns a digest of the files that hold these frames: of a short file all bytes, else size and three spots."""
    place = film.place
    held = hashlib.sha256()
    for path in [place.path / place.pictures[i] for i in places] if place.pictures else [place.path]:
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                held.update(size.to_bytes(8, "big"))
                for start in (0, size // 2, max(0, size - SPOT)):
                    file.seek(start)
                    held.update(file.read(SPOT))
        except OSError as error:
            # decoding will name the file and leave it out
            held.update(f"{error.errno}".encode())
    return held.hexdigest()
