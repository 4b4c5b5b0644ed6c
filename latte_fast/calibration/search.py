"""The search for plans: picks the steps worth computing, fits the sums of each plan that it tries, and measures it.

What a plan loses is measured, not predicted: the PSNR of its films to those of the plan that computes every step.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from torch import Tensor, nn
from tqdm import tqdm

from latte_fast.calibration.exact_edges import compared
from latte_fast.calibration.fits import Fits, better, each_psnr
from latte_fast.calibration.paths import (
    EVERY,
    Marks,
    Path,
    dense_late,
    extended,
    fewest_computed,
    hand_made,
    marks_of,
    neighbours,
    stretched,
)
from latte_fast.calibration.trajectory import Trajectory
from latte_fast.runs.plan import Plan
from latte_fast.sampling.planned import Denoiser, plain_plan
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import ModelSource

TIERS = {"high": 40.0, "fast": 32.0}  # least PSNR in dB
FEWEST = 6  # computed steps of the cheapest plan that is tried
RUNS = 30  # runs that refine a plan
EDGES = 2  # samples whose stretches are measured, where that is asked for
FEW = 6  # samples of the runs that choose among proposals
BEST = 2  # proposals that are run on all samples
NEAR = 3.0  # dB below a tier from which a plan is refined
MARGIN = 0.5  # dB that other samples may lose more, where the standard error of the mean is below it
DENSE = 10  # computed steps up to which each number is on the curve; above it is every other
BEYOND = 0.5  # dB above the highest tier at which the curve ends
# exponents of the computed steps' density, and lengths of the first stretch as a share of all steps
EXPONENTS, FIRSTS = (1.0, 1.25, 1.5, 1.75, 2.0), (0.0, 0.06, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3)
Loop = Literal["own", "any"]


class Shape(NamedTuple):
    """A dense late path, by places in EXPONENTS, in FIRSTS, and among the choices of how often ends are called."""

    exponent: int
    first: int
    every: int


START = Shape(EXPONENTS.index(1.5), FIRSTS.index(0.18), 1)


@dataclass(frozen=True)
class Found:
    """A plan that was run: its forwards, and the PSNR of its films to those of the plan that computes every step."""

    plan: Plan
    psnr: float
    path: Path = field(default_factory=dict, compare=False)
    each: Tensor | None = field(default=None, compare=False, repr=False)  # PSNR of each sample

    @property
    def sure(self) -> float:
        """The PSNR less its standard error over the samples: what others will have, which vary as these do."""
        if self.each is None or len(self.each) < 2:
            return self.psnr - MARGIN
        return self.psnr - max(MARGIN, float(self.each.std()) / math.sqrt(len(self.each)))

    def measured_plan(self) -> Plan:
        """Returns the plan with what was measured."""
        return replace(self.plan, measured={"psnr": round(self.psnr, 2), "forwards": self.plan.forwards})

    @property
    def speed(self) -> float:
        """Forwards of the whole plan over this plan's: an upper bound of the gain in time."""
        whole = sum(1.0 if row.guidance == "both" else 0.5 for row in self.plan.rows)
        return whole / self.plan.forwards


class Search:
    """Finds plans for a model, a sampler and a size; each is measured on the samples of the trajectory.

    Args:
        plan: sampler's plan, which computes every step.
        net: model.
        denoiser: what makes its predictions.
        noise: x_T of the samples.
        decode: function that makes films of latents.
        progress: whether to show progress bars.
        loop: "own" for plans with fitted sums and repeated predictions, which latte_fast.sample follows; "any" for
            plans that leave the solver to another loop.
    """

    def __init__(
        self,
        plan: Plan,
        net: nn.Module,
        denoiser: Denoiser,
        noise: Tensor,
        decode: Callable[[Tensor], Tensor] = lambda x: x,
        progress: bool = False,
        loop: Loop = "own",
    ):
        self.decode, self.count, self.every = decode, len(plan.rows), EVERY if loop == "own" else (1,)
        with tqdm(total=self.count, desc="calibrate", unit="step", disable=not progress) as bar:
            self.trajectory = Trajectory(plan, net, denoiser, noise, bar.update)
        self.all = Fits(self.trajectory, sums=loop == "own")
        self.few = Fits(self.trajectory.of_first(FEW), sums=loop == "own")
        self.film = decode(self.trajectory.result)
        self.found: list[Found] = []
        self.shapes: dict[int, Shape] = {}  # the best by computed steps
        self.best: dict[int, Path] = {}

    def tried(self, path: Path, fits: Fits) -> Found:
        """Runs a path on the samples of `fits`; those on all samples are found."""
        plan, latents = fits.run(marks_of(self.count, path))
        each = each_psnr(self.decode(latents), self.film[: len(latents)])
        trial = Found(plan, float(each.mean()), path, each)
        if fits is self.all:
            self.found.append(trial)
        return trial

    def budget(self, computed: int) -> Found:
        """Returns the best of the masks by hand and of the dense late paths with this many computed steps."""
        trials: dict[Marks, Found] = {}

        def tried(path: Path) -> float:
            marks = marks_of(self.count, path)
            if marks not in trials:
                trials[marks] = self.tried(path, self.few)
            return trials[marks].psnr

        def at(shape: Shape) -> float:
            return tried(self.shaped(shape, computed))

        for steps in hand_made(self.count, computed).values():
            tried(stretched(steps, 1, 1))
        known = min(self.shapes, key=lambda n: abs(n - computed), default=None)
        best = START if known is None else self.shapes[known]
        best = best._replace(every=min(best.every, len(self.every) - 1))
        while True:
            found = max([best, *self.around(best)], key=at)
            if found == best:
                break
            best = found
        self.shapes[computed] = best
        ranked = sorted(trials.values(), key=lambda trial: -trial.psnr)
        paths = [trial.path for trial in ranked[:BEST]]
        # what a few samples choose may be worse on all of them than the path of fewer steps
        fewer = [path for path in self.best.values() if len(path) < computed]
        if fewer:
            paths.append(extended(max(fewer, key=len), computed))
        best_of = max((self.tried(path, self.all) for path in paths), key=lambda trial: trial.psnr)
        self.best[computed] = best_of.path
        return best_of

    def shaped(self, shape: Shape, computed: int) -> Path:
        first = round(FIRSTS[shape.first] * self.count)
        steps = dense_late(self.count, computed, EXPONENTS[shape.exponent], first)
        return stretched(steps, 1, self.every[shape.every])

    def around(self, shape: Shape) -> Iterator[Shape]:
        """Yields the shapes that are a step away in one choice."""
        for name, of in (("exponent", EXPONENTS), ("first", FIRSTS), ("every", self.every)):
            for to in (getattr(shape, name) - 1, getattr(shape, name) + 1):
                if 0 <= to < len(of):
                    yield shape._replace(**{name: to})

    def refined(self, start: Found, runs: int = RUNS, enough: float = math.inf) -> Found:
        """Takes the first change of a path that raises the PSNR, again and again, within so many runs or until enough.

        A run begins at the first step in which it differs from the best one.
        """
        chance = random.Random(0)
        best = self.tried(start.path, self.all)
        self.all.keep()

        def changes() -> list[Path]:
            out = list(neighbours(best.path, self.count, self.every))
            chance.shuffle(out)
            return out

        waiting, seen = changes(), {marks_of(self.count, best.path)}
        while runs > 0 and waiting and best.sure < enough:
            path = waiting.pop()
            marks = marks_of(self.count, path)
            if marks in seen:
                continue
            seen.add(marks)
            runs -= 1
            trial = self.tried(path, self.all)
            assert trial.each is not None and best.each is not None
            if better(trial.each, best.each):
                best = trial
                self.all.keep()
                waiting = changes()
        return best

    def tier(self, curve: Sequence[Found], least: float) -> Found | None:
        """Returns the cheapest plan that surely has this PSNR, after refining those that are just below it."""
        below = [trial for trial in curve if least - NEAR <= trial.sure < least]
        for near in sorted(below, key=lambda trial: -trial.plan.forwards):
            if self.refined(near, enough=least).sure < least:
                break
        good = [trial for trial in self.found if trial.sure >= least]
        return min(good, key=lambda trial: (trial.plan.forwards, -trial.sure)) if good else None

    def edges(self) -> Iterator[str]:
        """Yields what shortest paths over stretches lose: with cheap errors, and with exact ones of one sample."""
        return compared(self.trajectory.of_first(EDGES), lambda path: self.tried(path, self.few).psnr)


def budget_of(steps: int, speed: float) -> int:
    """Returns how many of the steps are computed for this many times fewer forwards."""
    fewest = fewest_computed(steps)
    if not 1 <= speed <= steps / fewest:
        raise ValueError(f"calibrate: speed must be from 1 to {steps / fewest:.2f} at {steps} steps, got {speed:g}")
    return int(steps / speed + 1e-9)


def open_search(source: ModelSource, request: Request, progress: bool = False, loop: Loop = "own") -> Search:
    """Returns the search for plans of a request's sampler, steps and guidance, measured on its samples."""
    numbers = range(request.count)
    condition = source.condition_for(numbers, request.seed)
    null = condition.null if request.scale != 1.0 else {}
    denoiser = source.denoiser(source.model, condition.given, null, request.scale)
    keywords = source.adapter.step_keywords(request.steps)
    plain = plain_plan(source.whole, request.method, request.steps, request.scale, keywords, **source.made_for())
    assert source.network is not None
    noise = source.noise(numbers, source.shape, request.seed)
    return Search(plain, source.network, denoiser, noise, source.vae.decode, progress, loop)


def calibrate(
    source: ModelSource,
    request: Request,
    tiers: dict[str, float] | None = None,
    progress: bool = False,
    speeds: dict[str, float] | None = None,
    loop: Loop = "own",
    edges: Callable[[str], object] | None = None,
) -> tuple[dict[str, Found], list[Found]]:
    """Searches plans for a model and a sampler: the cheapest for each tier, and the best for each number of steps.

    Args:
        source: model, its conditions and its decoder.
        request: sampler, steps and guidance; its first `count` samples are what the loss is measured on.
        tiers: least PSNR in dB by name; by default TIERS, or none with speeds.
        progress: whether to show progress bars.
        speeds: by name, how many times fewer forwards than with every step computed; the best plan of each is found.
        loop: loop that will follow the plans, as for `Search`.
        edges: function that is told, a line a call, what shortest paths over measured stretches lose.
    """
    wanted = tiers or ({} if speeds else TIERS)
    exactly = {name: budget_of(request.calls, speed) for name, speed in (speeds or {}).items()}
    search = open_search(source, request, progress, loop)
    last = request.calls - 1
    budgets = range(max(FEWEST, fewest_computed(request.calls)), max(last * 3 // 5, FEWEST + 1))
    curve: list[Found] = []
    with tqdm(desc="plans", unit="plan", disable=not progress) as bar:
        every = [n for n in budgets if n <= DENSE or n % 2 == 0]
        for computed in every if wanted else sorted(set(exactly.values())):
            curve.append(search.budget(computed))
            bar.update(len(search.found) - bar.n)
            # the curve ends where it has risen well above what is asked for
            if wanted and curve[-1].sure > max(wanted.values()) + BEYOND:
                break
        found = {name: search.tier(curve, least) for name, least in wanted.items()}
        known = {at.plan.computed: at for at in curve}
        for name, computed in exactly.items():
            found[name] = search.refined(known[computed] if computed in known else search.budget(computed))
        bar.update(len(search.found) - bar.n)
    if edges is not None:
        for line in search.edges():
            edges(line)
    for name, best in found.items():
        if best is None:
            reached = max(f.sure for f in search.found)
            rule = f"at most the {reached:.1f} dB that reuse reaches here"
            raise ValueError(f"calibrate: psnr must be {rule}, got {wanted[name]:g}")
    return {name: best for name, best in found.items() if best is not None}, list(curve)
