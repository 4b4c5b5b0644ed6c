"""Errors of single stretches, cheap and exact, and the shortest paths over them."""

import itertools

import pytest
import torch

from latte_fast.calibration import edges, exact_edges
from latte_fast.calibration.edges import LONGEST, OBJECTIVES, Edges, rest_of, rms
from latte_fast.calibration.exact_edges import before, compared
from latte_fast.calibration.fits import Fits
from latte_fast.calibration.paths import marks_of
from latte_fast.calibration.search import Search, open_search
from latte_fast.sampling.planned import run_plan
from latte_fast.sampling.request import Request
from tests.calibration.test_fits import STEPS, source

__all__ = ["source"]


@pytest.fixture(scope="module")
def search(source) -> Search:
    return open_search(source, Request(count=2, steps=STEPS))


def test_an_edge_is_what_a_run_loses(search: Search) -> None:
    """The error of a stretch is that of a run whose other steps are all computed, but for what its end predicts."""
    found = Edges(search.trajectory, dict.fromkeys(range(STEPS), 1.0))
    for marks, at in (("CCCC1-CCCCCCCC", (2, 3, 6)), ("CCCC1-1-CCCCCC", (2, 3, 8)), ("C0-0-CCCCCCCCC", (None, 0, 5))):
        fits = Fits(search.trajectory)
        fits.run(marks)
        end = fits.tried[1][at[2] + 1]
        assert found.cost[at] == pytest.approx(rms(end.base - search.trajectory.bases[at[2]]), rel=0.25)
    assert found.cost[2, 3, 4] == 0.0 and found.of(2, 3, 6) == found.cost[2, 3, 6]


def test_paths_are_the_shortest(search: Search) -> None:
    """Against every set of computed steps, where the step before does not matter."""
    found = Edges(search.trajectory, dict.fromkeys(range(STEPS), 1.0))
    found.cost = {at: cost for at, cost in found.cost.items() if at[0] is None}
    for objective, add in OBJECTIVES.items():

        def total(steps: tuple[int, ...], add=add) -> float:
            value = 0.0
            for i, j in itertools.pairwise(steps):
                value = add(value, found.of(None, i, j))
            return value

        sets = [(0, *inner, STEPS - 1) for inner in itertools.combinations(range(1, STEPS - 1), 3)]
        path = found.path(5, objective)
        assert path is not None and total(tuple(sorted(path))) == pytest.approx(min(map(total, sets)))
        assert set(marks_of(STEPS, path)) <= set("C01-")
    assert LONGEST < 50 and found.path(1, "sum") is None


def test_exact_edges_are_run_to_the_end(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (edges, exact_edges):
        monkeypatch.setattr(module, "LONGEST", 4)
    one = search.trajectory.of_first(1)
    cheap = Edges(one, dict.fromkeys(range(STEPS), 1.0))
    exact = exact_edges.exact_edges(cheap)
    for i, j in ((0, 4), (3, 6), (9, 13)):
        x = cheap.stretch(before(i, j), i)[j]
        film = run_plan(rest_of(one.plan, j), None, one.denoiser, x)
        assert exact.cost[before(i, j), i, j] == pytest.approx(rms(film - one.result), rel=1e-3)
    monkeypatch.setattr(exact_edges, "SHOWN", (5,))
    lines = list(compared(one, lambda path: float(len(path))))
    assert "stretches run to x_0 on one sample" in lines[0] and "rank correlation" in lines[1]
    assert lines[2] == "5 computed, least sum: cheap 5.00 dB, exact 5.00 dB" and len(lines) == 5
    assert torch.equal(search.film, search.decode(search.trajectory.result))
