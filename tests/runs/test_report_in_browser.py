"""A run's page in a browser: it loads nothing from elsewhere, says no error, and its films play the very frames."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latte_fast.runs.report import Shown, write_report
from tests.helpers.browser import Browser, open_browser

FRAMES, SIDE, SCALE = 5, 16, 8  # of a film, and how much a page enlarges it
PLAYS = "document.querySelector('.film').getAnimations()[0]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


def test_films_play_and_nothing_goes_wrong(browser: Browser, run: Path, tmp_path: Path) -> None:
    video = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8)
    shown = [Shown(video, "<up> & 'down'"), Shown(video[::-1].copy(), "back")]
    browser.open(write_report(run, films=shown, machine="a & <b>"))
    assert browser.ask("document.querySelectorAll('.film').length") == 2 + 16
    assert browser.ask("document.querySelectorAll('svg polyline').length") == 4
    assert browser.ask("document.querySelector('figcaption').textContent") == "<up> & 'down'"
    # by itself
    assert browser.ask(f"{PLAYS}.playState") == "running"
    begun = browser.ask(f"{PLAYS}.currentTime")
    later = f"{PLAYS}.currentTime > {begun} + 100 ? done(true) : setTimeout(look, 20)"
    assert browser.ask(f"new Promise(done => {{const look = () => {later}; look()}})")
    length = browser.ask(f"{PLAYS}.effect.getComputedTiming().duration")
    assert length == pytest.approx(1000 * FRAMES / 8) and browser.ask(f"{PLAYS}.effect.getTiming().iterations") is None
    # in each of its spans it shows that frame, enlarged, and after the last one the first
    browser.ask(f"{PLAYS}.pause()")
    for i in (*range(FRAMES), FRAMES):
        browser.ask(f"{PLAYS}.currentTime = {(i + 0.5) * length / FRAMES}")
        large = video[i % FRAMES].repeat(SCALE, 0).repeat(SCALE, 1)
        assert np.array_equal(browser.picture(".film", tmp_path), large), f"frame {i}"
    assert browser.errors() == []
    assert {address.split(":")[0] for address in browser.asked_for()} == {"file", "data"}
    assert sum(address.startswith("file:") for address in browser.asked_for()) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<script>console.error('gone')</script>", "console: .*gone"),
        ("<script>nowhere()</script>", "exception: ReferenceError"),
        ("<img src='none.png'>", "not loaded: net::ERR_FILE_NOT_FOUND"),
    ],
    ids=["console", "exception", "picture"],
)
def test_what_goes_wrong_is_seen(body: str, said: str, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><html><body>{body}</body></html>")
    browser.open(tmp_path / "page.html")
    found = browser.errors()
    with pytest.raises(AssertionError, match=said):
        assert found == []
