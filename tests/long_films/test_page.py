"""The page on long films says what they cost: forwards of a window for each frame, counted."""

import re
from pathlib import Path

import pytest

from latte_fast.long_films.source import LongSource
from tests.helpers.long_films import request, source

PAGE = Path(__file__).parents[2] / "docs" / "long-films.md"
ROWS = dict(re.findall(r"^\| `([a-z].*?)` \| \w+ \| .*? \| (\d+) \|", PAGE.read_text(), re.MULTILINE))
OPTIONS = {
    "fifo --long-films.no-lookahead": {"lookahead": False},
    "fifo": {},
    "windows": {"stride": 8},
    "rollout": {"context": 8},
}


@pytest.mark.parametrize("row", OPTIONS)
def test_forwards_a_frame(row: str) -> None:
    films = LongSource(source(num_frames=16), 1.0)
    counts = [
        films.complete(request(row.split()[0], frames, 64, {"at_once": 1} | OPTIONS[row])).forwards
        for frames in (160, 320)
    ]
    assert ROWS.keys() == OPTIONS.keys()
    assert (counts[1] - counts[0]) / 160 == int(ROWS[row])
    assert counts[0] - 160 * int(ROWS[row]) <= 64 * (int(ROWS[row]) if "fifo" in row else 1)  # the film's ends
