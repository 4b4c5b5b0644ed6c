"""A run's page: that it is whole, loads nothing from elsewhere, and shows the very frames, curves and words."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from latte_fast.cli.report import report
from latte_fast.media.picture import read_picture
from latte_fast.runs.log import LOG
from latte_fast.runs.page import SIDE, curve, film
from latte_fast.runs.report import Shown, cut_sheet, write_report
from tests.helpers.detectors import write_arrays

VOID = {"meta", "circle", "polyline"}


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on a tag that is not closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"{tag} is closed out of turn"

    def handle_data(self, data: str) -> None:
        self.text += data

    def films(self) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if attrs.get("class") == "film"]


def frames_of(style: str, folder: Path) -> np.ndarray:
    """Reads the frames (F, H, W, 3) of a film in the page, cut where its style says."""
    found = re.search(r"base64,([A-Za-z0-9+/=]+)\)", style)
    steps = re.search(r"background-size:(\d+)00% 100%", style)
    assert found and steps
    (folder / "strip.png").write_bytes(base64.b64decode(found[1], validate=True))
    return np.stack(np.split(read_picture(folder / "strip.png"), int(steps[1]), 1))


def test_the_page_is_whole_and_loads_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(1)
    films = [draw.integers(0, 256, (5, 12, 20, 3), np.uint8) for _ in range(3)]
    samples = write_arrays(tmp_path / "drawn", films)
    request = json.loads((samples / "samples.json").read_text())["request"]
    (samples / "samples.json").write_text(json.dumps({"request": request, "names": ["up", '<script>"x"', "up"]}))
    held = {"metric": "fvd", "name": "FVD", "value": 12.5, "interval": [11, 14], "samples": {}, "warnings": []}
    (samples / "fvd.json").write_text(json.dumps(held))
    report(run, (samples,))
    out = Path(capsys.readouterr().out.strip())
    text = out.read_text()
    page = Page(text)
    assert out == run / "report.html" and page.tags[0][0] == "html"
    # no script, link, frame or picture from elsewhere, and nothing that a browser would fetch
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "img", "video", "object"})
    assert all(url.startswith("data:image/png;base64,") for url in re.findall(r"url\(([^)]*)", text))
    assert not re.search(r"https?://|src=|href=|@import", text) and "<script>" not in text
    shown = page.films()
    assert [attrs["aria-label"] for attrs in shown[:3]] == ["up", "up", '<script>"x"']
    for attrs, i in zip(shown[:3], (0, 2, 1), strict=True):
        assert np.array_equal(frames_of(attrs["style"] or "", tmp_path), films[i])
    assert "animation-timing-function:steps(5,jump-none)" in (shown[0]["style"] or "")
    for said in ("Run a & <b>", "40 of 40", "hidden_size", "12.5", "11 to 14", "2 GB", "torch"):
        assert said in page.text, said
    assert "fvd" in page.text and "860 at step 40" in page.text and "30 clips a second (median)" in page.text


def test_previews_play_by_training_step(run: Path, tmp_path: Path) -> None:
    page = Page(write_report(run).read_text())
    shown = page.films()
    steps = [int((attrs["aria-label"] or "").removeprefix("step ")) for attrs in shown]
    # two films each, of at most eight steps with the first and the last
    assert steps[::2] == steps[1::2] and len(steps) == 16 and (steps[0], steps[-1]) == (1, 12)
    for attrs, step in ((shown[0], 1), (shown[-1], 12)):
        frames = frames_of(attrs["style"] or "", tmp_path)
        sheet = read_picture(run / "samples" / f"step-{step:07d}.png")
        row = 0 if step == 1 else 1
        top = 2 + (16 if step % 2 else 0) + row * 18
        assert np.array_equal(frames[2], sheet[top : top + 16, 2 + 2 * 18 : 2 + 2 * 18 + 16])
    assert cut_sheet(np.zeros((100, 90, 3), np.uint8), 16) == []


def test_long_and_large_films_are_thinned(tmp_path: Path) -> None:
    video = np.zeros((90, 200, 300, 3), np.uint8)
    video[..., 0] = np.arange(90)[:, None, None]
    frames = frames_of(Page(film(video, "x")).films()[0]["style"] or "", tmp_path)
    assert frames.shape == (32, SIDE, SIDE, 3)
    assert frames[[0, -1], 5, 5, 0].tolist() == [0, 89]


def test_a_curve_is_drawn_to_scale() -> None:
    drawn = Page(curve([(0, 1.0), (5, 3.0), (10, 2.0)], "a < b"))
    line = next(attrs["points"] for tag, attrs in drawn.tags if tag == "polyline") or ""
    x, y = zip(*[map(float, pair.split(",")) for pair in line.split()], strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and x[0] < x[1]
    # the largest is at the top, and the last half-way down
    assert y[1] < y[2] < y[0] and y[2] == pytest.approx((y[0] + y[1]) / 2, abs=0.2)
    assert "a < b" in drawn.text
    assert Page(curve([(3, 1.0)], "one")).tags


def test_runs_and_files_that_are_none(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report: run must be a folder with config.yaml, got .*none"):
        write_report(tmp_path / "none")
    with pytest.raises(ValueError, match=r"report: out must end in .html, got x.htm"):
        write_report(run, "x.htm")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"report: .*a.json must be what `latte-fast evaluate` wrote"):
        write_report(run, results=[tmp_path / "a.json"])
    with pytest.raises(SystemExit, match="report: films must be at least 1, got 0"):
        report(run, films=0)
    (run / LOG).unlink()
    assert "no lines yet" in write_report(run, films=[Shown(np.zeros((1, 4, 4, 3), np.uint8), "")]).read_text()
