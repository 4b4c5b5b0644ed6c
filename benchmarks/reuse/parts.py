"""The parts of the table: what each measures, on samples that no plan was searched on."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.reuse.race import HELD_OUT, Race, Result, attention_share, seconds
from benchmarks.reuse.store import Store
from latte_fast.calibration.fewer_steps import OTHERS
from latte_fast.calibration.fits import psnr
from latte_fast.calibration.plans import find_plans
from latte_fast.calibration.search import TIERS, calibrate, open_search
from latte_fast.data.shapes import CLASSES
from latte_fast.evaluation.shapes_classifier import share_recognised, train_recogniser
from latte_fast.media.pixels import normalise
from latte_fast.runs.load import load
from latte_fast.runs.plan import PLANS, Plan, load_plan
from latte_fast.sampling.request import Request
from latte_fast.sampling.sample import open_source

STEPS, GUIDANCE, CONVERGED = 50, 4.0, 1000
SEARCHED: dict[str, Any] = {"count": 16, "steps": STEPS, "scale": GUIDANCE}  # what a search of plans draws
FEWER = (8, 10, 12, 16, 20, 25)  # steps of the samplers beside the converged film
CONTENDED = (8, 10, 12, 14, 16, 20, 25)  # computed steps of the published rules


class Parts:
    """Measures one run, and keeps every figure in a store.

    Args:
        run: folder of a run on moving shapes, with the plans beside it.
        store: figures that are there already.
        given: what the command was given: samples, batch, budgets, rounds, device.
    """

    def __init__(self, run: Path, store: Store, given: argparse.Namespace):
        self.run, self.store, self.given = run, store, given
        self.samples, self.batch = given.samples, given.batch
        self.source = open_source(load(run, device=given.device), None, (), torch.float32, given.device)

    @functools.cached_property
    def race(self) -> Race:
        return Race(self.source, "ddim", STEPS, GUIDANCE, self.samples)

    def plan(self, quality: str) -> Plan:
        return load_plan(self.run / PLANS / f"{quality}.json")

    def plans(self) -> None:
        """Calibrates, and measures what the plans lose on other samples."""
        self.searched()
        for quality in TIERS:
            plan = self.plan(quality)
            self.store.get(f"loss/{quality}", lambda p=plan: self.loss(self.race.plan("", p), p))

    def searched(self) -> None:
        """Searches the run's plans where they do not lie beside it."""
        if not all((self.run / PLANS / f"{q}.json").is_file() for q in TIERS):
            self.store.check_time()
            spent, _ = seconds(lambda: find_plans(self.run, progress=True, device=self.given.device))
            self.store.put("calibrate, seconds", round(spent, 1))

    def loss(self, result: Result, plan: Plan) -> dict[str, object]:
        return {"forwards": result.forwards, "psnr": round(result.psnr, 2), "what": str(plan).split()[-1]}

    def budgets(self) -> None:
        """The plan of each number of forwards, beside the best mask made by hand; and its distance to convergence."""
        budgets = self.given.budgets
        missing = [n for n in budgets if f"converged/ddim/{n} of 50" not in self.store.figures]
        if missing:
            search = open_search(self.source, Request(**SEARCHED), progress=True)
            for n in missing:
                self.store.check_time()
                plan = search.budget(n).plan
                film = self.film(self.race, plan)
                self.store.put(f"budget/{n}/plan", self.loss(self.race.result("", plan, film), plan))
                self.store.put(f"converged/ddim/{n} of 50", self.to_converged(film))
        for n in budgets:
            self.store.get(f"budget/{n}/best mask", lambda n=n: as_figure(self.race.masks(n)))

    def film(self, race: Race, plan: Plan) -> torch.Tensor:
        return race.film(self.source.follow(plan, race.denoiser(), race.noise, tables=True))

    def contenders(self) -> None:
        """Published rules with as many computed steps, and those that reuse attention alone at their own cost."""
        for n in set(self.given.budgets) & set(CONTENDED):
            self.store.check_time()
            if f"contender/{n}/TaylorSeer" not in self.store.figures:
                for result in self.race.contenders(n):
                    self.store.put(f"contender/{n}/{result.name}", as_figure(result))
        if hasattr(self.source.network, "x_embedder") and "broadcast/PAB" not in self.store.figures:
            for result in self.race.broadcasts(attention_share(self.source.adapter.config)):
                self.store.put(f"broadcast/{result.name}", as_figure(result))

    @functools.cached_property
    def converged(self) -> torch.Tensor:
        kept = self.store.path.with_suffix(".converged.pt")
        if not kept.is_file():
            self.store.check_time()
            torch.save(Race(self.source, "dpm++", CONVERGED, GUIDANCE, self.samples).exact, kept)
        film: torch.Tensor = torch.load(kept, map_location=self.given.device)
        return film

    def to_converged(self, film: torch.Tensor) -> float:
        return round(psnr(film, self.converged), 2)

    def samplers(self) -> None:
        """Distances to one converged film: of fewer steps of each sampler, and of plans on top of the others."""
        for method in ("ddim", *OTHERS):
            for steps in (*FEWER, STEPS):
                name = f"converged/{method}/{steps} steps"
                self.store.get(name, lambda m=method, s=steps: self.to_converged(self.race_of(m, s).exact))
        for method in OTHERS:
            if f"calibrated/{method}/fast" in self.store.figures:
                continue
            self.store.check_time()
            found, curve = calibrate(self.source, Request(**SEARCHED | {"method": method}), progress=True)
            race = self.race_of(method, STEPS)
            for at in (*curve, *found.values()):
                film = self.film(race, at.plan)
                self.store.put(f"converged/{method}/{at.plan.computed} of 50", self.to_converged(film))
            for quality, at in found.items():
                result = race.result("", at.plan, self.film(race, at.plan))
                self.store.put(f"calibrated/{method}/{quality}", self.loss(result, at.plan))

    def race_of(self, method: str, steps: int) -> Race:
        return Race(self.source, method, steps, GUIDANCE, self.samples)

    def seconds(self) -> None:
        """Seconds of each quality end to end, in turns; and the share of its samples that is recognised."""
        self.searched()
        adapter = self.source.adapter
        self.source.wanted = list(range(adapter.choices))
        common: dict[str, Any] = {"count": self.batch, "batch": self.batch, "steps": STEPS, "scale": GUIDANCE}
        requests = {
            "exact": Request(**common),
            "lossless": Request(**common, lossless=True),
            **{q: Request(**common, plan=str(self.run / PLANS / f"{q}.json")) for q in TIERS},
        }
        begin = HELD_OUT * adapter.choices
        numbers = range(begin, begin + self.batch)
        self.source.draw(Request(count=self.batch, batch=self.batch, steps=2), numbers)  # warms up
        self.source.made_for()
        films: dict[str, torch.Tensor] = {}
        for number in range(self.given.rounds):
            if f"round/{number}" in self.store.figures:
                continue
            spent = {}
            for name, request in requests.items():
                spent[name], (videos, _) = seconds(lambda r=request: self.source.draw(r, numbers))  # type: ignore[misc]
                films[name] = normalise(videos.movedim(-1, -3))
            self.store.put(f"round/{number}", {name: round(took, 3) for name, took in spent.items()})
        if films and any(f"score/{name}" not in self.store.figures for name in films):
            self.scores(films)

    def scores(self, films: dict[str, torch.Tensor]) -> None:
        adapter, (frames, _, side, _) = self.source.adapter, self.source.shape
        network = train_recogniser(frames, side, shown(adapter.label_names()), steps=400)[0]
        labels = torch.arange(adapter.choices).repeat(self.batch)[: self.batch]
        for name, film in films.items():
            loss = "" if name == "exact" else round(min(psnr(film, films["exact"]), 99.0), 2)
            figures = {"psnr": loss, "recognised": round(share_recognised(network, film, labels), 4)}
            self.store.put(f"score/{name}", figures)


def as_figure(result: Result) -> dict[str, object]:
    return {"forwards": round(result.forwards, 1), "psnr": round(result.psnr, 2), "what": result.note}


def shown(names: Sequence[str]) -> list[int]:
    """Returns the numbers of the shapes that a run's labels stand for: classes by name, captions by their words."""
    words = [[n for n, c in enumerate(CLASSES) if set(c.split()) <= set(name.split())] for name in names]
    return [found[0] for found in words]
