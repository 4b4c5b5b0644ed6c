"""Which clips and frames are taken: of films whose pixels say which frame of which film they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latte_fast.data.layouts import Place
from latte_fast.distributed.ranks import Ranks
from latte_fast.evaluation.config import Evaluation
from latte_fast.evaluation.detector import Detector
from latte_fast.evaluation.features import Features, gather
from latte_fast.evaluation.film_sets import ArrayFile, FilmSet, open_real, open_samples
from latte_fast.evaluation.parts import Collected
from latte_fast.evaluation.selection import (
    PIECE,
    Choice,
    choose_frames,
    choose_real,
    choose_samples,
    digest,
    digest_of_files,
)
from tests.helpers.detectors import Colours, Numbers, numbered, numbered_set, saved, write_arrays

# a clip of 4 frames at interval 3 spans 10: two films are too short, one fits once
LENGTHS = [25, 9, 10, 40, 4, 17, 30, 12]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_set(tmp_path_factory.mktemp("real"), LENGTHS)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector("fvd", saved(Numbers(), tmp_path_factory.mktemp("detector") / "numbers.pt"))


def asked(**changes: object) -> Evaluation:
    settings: dict = {"real": "x", "kind": "frames", "frames": 4, "interval": 3, "size": 8} | changes
    return Evaluation("samples", "detector.pt", **settings)


def seen(choice: Choice, detector: Detector, config: Evaluation) -> list[list[int]]:
    """Of each clip: its film, and its frames' numbers; a film has one number in all its frames."""
    rows = (
        gather(Collected(Features("real", choice, detector, config), Ranks()))
        .view(-1, 2, config.setting("frames"))
        .round()
        .long()
    )
    assert (rows[:, 1] == rows[:, 1, :1]).all()
    return torch.cat([rows[:, 1, :1], rows[:, 0]], 1).tolist()


def test_real_clips_keep_the_protocol(root: Path, detector: Detector) -> None:
    starts: dict[int, set[int]] = {}
    for seed in range(120):
        config = asked(seed=seed)
        choice = choose_real(open_real("frames", root), config)
        assert choice.short == 2 and choice.count == 6
        clips = [[p.film, *p.places] for p in choice.pieces]
        assert [clip[0] for clip in clips] == [0, 2, 3, 5, 6, 7]
        assert all(np.diff(clip[1:]).tolist() == [3, 3, 3] for clip in clips)
        for film, first, *_, last in clips:
            assert first >= 0 and last < LENGTHS[film]
            starts.setdefault(film, set()).add(first)
        if seed == 0:
            assert seen(choice, detector, config) == clips
    # every start that fits is drawn, the last one too
    assert starts[2] == {0} and starts[7] == {0, 1, 2} and starts[5] == {*range(8)}


def test_videos_of_one_length_have_starts_of_their_own() -> None:
    alike = FilmSet(Path("x"), [ArrayFile(Place(Path(f"x/{i}")), 109) for i in range(50)])
    starts = [piece.places[0] for piece in choose_real(alike, asked()).pieces]
    assert len({*starts}) > 30 and min(starts) >= 0 and max(starts) < 100


def test_fewer_videos_are_drawn_without_replacement(root: Path) -> None:
    films = open_real("frames", root)
    drawn = []
    for seed in range(40):
        few = [p.film for p in choose_real(films, asked(seed=seed, clips=3)).pieces]
        more = choose_real(films, asked(seed=seed, clips=4)).pieces
        assert len({*few}) == 3 and few == sorted(few)
        # more clips hold the fewer, with the same starts
        assert {*few} < {p.film for p in more}
        assert all(piece in more for piece in choose_real(films, asked(seed=seed, clips=3)).pieces)
        drawn.append(tuple(few))
    assert {film for few in drawn for film in few} == {0, 2, 3, 5, 6, 7} and len({*drawn}) > 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_neither_batch_nor_workers_matter(root: Path, detector: Detector, batch: int, workers: int) -> None:
    films = open_real("frames", root)
    alone = seen(choose_real(films, asked(seed=5)), detector, asked(seed=5))
    config = asked(seed=5, batch=batch, workers=workers)
    assert seen(choose_real(films, config), detector, config) == alone
    assert seen(choose_real(films, asked(seed=6)), detector, config) != alone


def test_samples_are_taken_from_their_first_frame(tmp_path: Path, detector: Detector) -> None:
    folder = write_arrays(tmp_path / "samples", [numbered(i, 4 + i % 3) for i in range(9)])
    films = open_samples(folder)
    # the interval is the real set's alone
    assert seen(choose_samples(films, asked()), detector, asked()) == [[i, 0, 1, 2, 3] for i in range(9)]
    few = [[p.film for p in choose_samples(films, asked(clips=5, seed=seed)).pieces] for seed in range(20)]
    assert all(len({*drawn}) == 5 for drawn in few) and len({*map(tuple, few)}) > 5
    with pytest.raises(ValueError, match=r"samples must have at least the 5 frames of a clip, got 4 in 000000.npz"):
        choose_samples(films, asked(frames=5))


def test_frames_are_drawn_from_all_without_replacement(root: Path, tmp_path: Path) -> None:
    films = open_real("frames", root)
    every = {(film, place) for film, length in enumerate(LENGTHS) for place in range(length)}

    def drawn(**changes: object) -> list[tuple[int, int]]:
        config = Evaluation("samples", "detector.pt", "fid", "x", "frames", **changes)  # type: ignore[arg-type]
        choice = choose_real(films, config)
        taken = [(piece.film, place) for piece in choice.pieces for place in piece.places]
        assert choice.count == len(taken) == len({*taken}) and taken == sorted(taken)
        return taken

    assert {*drawn()} == every
    some = [drawn(images=30, seed=seed) for seed in range(40)]
    assert all(len(taken) == 30 for taken in some) and {pair for taken in some for pair in taken} == every
    detector = Detector("fid", saved(Colours(), tmp_path / "colours.pt"))
    for batch in (1, 7):
        config = Evaluation("samples", "d", "fid", "x", "frames", images=30, seed=3, batch=batch, size=8)
        rows = gather(Collected(Features("real", choose_real(films, config), detector, config), Ranks()))
        assert [(film, place) for place, film, _ in rows.round().long().tolist()] == some[3]


def test_long_films_are_read_in_pieces() -> None:
    pieces = choose_frames(np.random.default_rng(0), [300, 1, 2], 10**6)
    assert [len(p.places) for p in pieces] == [PIECE] * 4 + [300 - 4 * PIECE, 1, 2]


def test_digest_tells_what_is_read(root: Path, tmp_path: Path) -> None:
    def of(folder: Path, **changes: object) -> str:
        return digest(choose_real(open_real("frames", folder), asked(**changes)))

    same = numbered_set(tmp_path / "same", LENGTHS)
    assert of(root) == of(same) != of(root, seed=1)
    # another file in the place of one that is read
    picture = same / "002" / "0003.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert of(root) != of(same)
    # one that cannot be read has a digest too: the run leaves it out and names it
    picture.unlink()
    picture.symlink_to("nothing")
    assert of(same) not in (of(root), "")


@pytest.mark.parametrize("at", [0, 100_000, 199_999])
def test_digest_tells_files_of_one_size_apart(tmp_path: Path, at: int) -> None:
    """Uncompressed pictures are of one size whatever they show."""
    path = tmp_path / "a" / "000.bmp"
    path.parent.mkdir()
    films = ArrayFile(Place(path.parent, None, (path.name,)), 1), ArrayFile(Place(path), 1)
    path.write_bytes(bytes(200_000))
    before = [digest_of_files(film, [0]) for film in films]
    held = bytearray(200_000)
    held[at] = 1
    # and one of another size that shows the same in every spot
    for content in (held, bytes(300_000)):
        path.write_bytes(content)
        assert all(digest_of_files(film, [0]) != was for film, was in zip(films, before, strict=True))


def test_protocols_are_the_published_ones() -> None:
    fvd, fid = asked(frames=None, interval=None), asked(metric="fid", frames=None, interval=None)
    assert [fvd.setting(name) for name in ("clips", "frames", "interval")] == [2048, 16, 3] and fid.count == 50_000
    score = Evaluation("s", "d", "is")
    assert (score.count, score.setting("frames")) == (2048, 16)


def test_too_few(root: Path, tmp_path: Path) -> None:
    films = open_real("frames", root)
    message = r"at least 2 videos of 37 frames or more \(4 frames at interval 12\), got 1 of 8 in "
    with pytest.raises(ValueError, match=message):
        choose_real(films, asked(interval=12))
    one = open_samples(write_arrays(tmp_path / "one", [numbered(0, 4)]))
    with pytest.raises(ValueError, match="samples must be at least 2 for fvd, got 1 in"):
        choose_samples(one, asked())
    with pytest.raises(ValueError, match="samples must be at least 20 for is, got 1 in"):
        choose_samples(one, Evaluation("s", "d", "is", frames=4))
    two = open_samples(write_arrays(tmp_path / "two", [numbered(0, 4)] * 2))
    assert choose_samples(two, asked()).count == 2
