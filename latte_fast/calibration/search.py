"""The search for plans: picks the steps worth computing, fits the sums of each plan that it tries, and measures it.

What a plan loses is measured, not predicted: the PSNR of its films to those of the plan that computes every step.
"""

import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from torch import Tensor, nn
from tqdm import tqdm

from latte_fast.calibration.exact_edges import compared
from latte_fast.calibration.fits import Fits, better, each_psnr, psnr
from latte_fast.calibration.paths import (
    EVERY,
    Marks,
    Path,
    dense_late,
    fewest_computed,
    hand_made,
    marks_of,
    neighbours,
    stretched,
)
from latte_fast.calibration.trajectory import Trajectory
from latte_fast.runs.plan import Plan
from latte_fast.sampling.planned import Denoiser, plain_plan, run_plan
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import ModelSource

TIERS = {"high": 40.0, "fast": 32.0}  # least PSNR in dB
FEWEST = 6  # computed steps of the cheapest plan that is tried
UNSEEN = 2  # samples for each of the search's, on which what it found is measured
SHAPED = (0.2, 0.3)  # shares of computed steps for which the shape is chosen
RUNS = 8  # runs that refine a plan
EDGES, FEW = 2, 6  # samples whose stretches are measured, where that is asked for, and of the plans run for it
NEAR = 1.5  # dB below a tier from which a plan is refined
MARGIN = 0.5  # standard errors of the mean, and dB at least, that a plan has to be above a tier
ENDS = 0.06  # dB that each call of the model's two ends has to gain, as a step more that is computed gains about 1 dB
ENOUGH = 3  # plans that reach the highest tier, at which the curve ends
# exponents of the computed steps' density, and lengths of the first stretch: by how much of all steps over the root of
# the computed ones, as the best lengths of 8 to 22 computed steps of 50 are
EXPONENTS, FIRSTS = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0), (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Loop = Literal["own", "any"]


class Shape(NamedTuple):
    """A dense late path, by places in FIRSTS, in EXPONENTS, and among the choices of how often ends are called."""

    first: int
    exponent: int
    every: int


START = Shape(FIRSTS.index(0.7), EXPONENTS.index(1.5), 1)


@dataclass(frozen=True)
class Found:
    """A plan that was run: its forwards, and the PSNR of its films to those of the plan that computes every step."""

    plan: Plan
    psnr: float  # on the samples that it was fitted to
    path: Path = field(default_factory=dict, compare=False)
    each: Tensor | None = field(default=None, compare=False, repr=False)  # PSNR of each of them
    unseen: Tensor | None = field(default=None, compare=False, repr=False)  # PSNR of each of the other samples

    @property
    def gained(self) -> Tensor:
        """The PSNR of each sample less what calls of the model's two ends have to gain."""
        assert self.each is not None
        calls = sum(not row.compute and not row.repeat for row in self.plan.rows)
        return self.each - ENDS * calls

    @property
    def value(self) -> float:
        return float(self.gained.mean())

    @property
    def expected(self) -> float:
        """The mean PSNR on samples that the plan was not searched on, where they were run."""
        return self.psnr if self.unseen is None else float(self.unseen.mean())

    @property
    def sure(self) -> float:
        """The expected PSNR less half its standard error over the samples, as others vary as these do."""
        of = self.each if self.unseen is None else self.unseen
        if of is None or len(of) < 2:
            return self.expected - MARGIN
        return self.expected - MARGIN * max(1.0, float(of.std()) / math.sqrt(len(of)))

    def measured_plan(self) -> Plan:
        """Returns the plan with what was measured."""
        return replace(self.plan, measured={"psnr": round(self.expected, 2), "forwards": self.plan.forwards})

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
        unseen: denoiser and x_T of the samples on which what was found is measured.
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
        unseen: tuple[Denoiser, Tensor] | None = None,
    ):
        self.decode, self.count, self.every = decode, len(plan.rows), EVERY if loop == "own" else (1,)
        with tqdm(total=(1 + bool(unseen)) * self.count, desc="calibrate", unit="step", disable=not progress) as bar:
            self.trajectory = Trajectory(plan, net, denoiser, noise, bar.update)
            self.unseen = unseen
            if unseen is not None:
                self.unseen_film = decode(run_plan(plan, None, *unseen, lambda *_: bar.update()))
        self.all = Fits(self.trajectory, sums=loop == "own")
        self.film = decode(self.trajectory.result)
        self.found: list[Found] = []
        self.runs: dict[Marks, Found] = {}
        self.measured: dict[int, Found] = {}  # by computed steps, on the other samples too

    def tried(self, path: Path) -> Found:
        """Runs a path on all samples; one that was run is found again."""
        marks = marks_of(self.count, path)
        if marks not in self.runs:
            self.runs[marks] = self.judged(path, *self.all.run(marks))
        return self.runs[marks]

    def judged(self, path: Path, plan: Plan, latents: Tensor) -> Found:
        each = each_psnr(self.decode(latents), self.film)
        self.found.append(Found(plan, float(each.mean()), path, each))
        return self.found[-1]

    def on_others(self, found: Found) -> Found:
        """Measures a plan on the samples that no plan is searched on."""
        if self.unseen is None or found.unseen is not None:
            return found
        denoiser, noise = self.unseen
        latents = run_plan(found.plan, self.trajectory.net, denoiser.of_first(len(noise)), noise)
        return replace(found, unseen=each_psnr(self.decode(latents), self.unseen_film))

    def budget(self, computed: int) -> Found:
        """Returns the better of two plans with this many computed steps: of the shape of all, and of a mask by hand.

        The mask that is dense late is the best of those without fits. Where steps are rounded to serves one number of
        them better than the next, for either of the two.
        """
        shaped = self.tried(self.shaped(self.shape, computed))
        steps = hand_made(self.count, computed)["late-dense"]
        mask = self.tried(stretched(steps, 1, self.every[self.shape.every]))
        return mask if better(mask.gained, shaped.gained) else shaped

    @functools.cached_property
    def shape(self) -> Shape:
        """The best shape in the mean over two numbers of steps: the best of one number holds less on other samples."""
        least = max(FEWEST, fewest_computed(self.count))
        numbers = sorted({max(least, round(share * self.count)) for share in SHAPED})
        return self.climbed(START._replace(every=min(START.every, len(self.every) - 1)), numbers)

    def climbed(self, best: Shape, numbers: Sequence[int]) -> Shape:
        """Moves one choice of a shape after the other as long as the mean PSNR rises."""
        choices: dict[str, Sequence[float]] = {"exponent": EXPONENTS, "first": FIRSTS, "every": self.every}

        def at(shape: Shape) -> float:
            return sum(self.tried(self.shaped(shape, n)).value for n in numbers)

        for name in Shape._fields:
            for way in (1, -1):
                start = best
                while 0 <= (to := getattr(best, name) + way) < len(choices[name]):
                    moved = best._replace(**{name: to})
                    if at(moved) <= at(best):
                        break
                    best = moved
                if best != start:
                    break
        return best

    def shaped(self, shape: Shape, computed: int) -> Path:
        first = round(FIRSTS[shape.first] * self.count / math.sqrt(computed))
        steps = dense_late(self.count, computed, EXPONENTS[shape.exponent], first)
        return stretched(steps, 1, self.every[shape.every])

    def refined(self, start: Found, runs: int = RUNS) -> Found:
        """Takes the first change of a path that raises the PSNR by more than chance, again and again, in so many runs.

        A run begins at the first step in which it differs from the best one, and is given up where it is behind it soon
        after the last.
        """
        chance = random.Random(0)
        best = start
        self.all.run(marks_of(self.count, start.path))
        self.all.keep()

        def changes() -> list[Path]:
            out = list(neighbours(best.path, self.count, self.every))
            chance.shuffle(out)
            return out

        waiting, seen = changes(), {marks_of(self.count, best.path)}
        while runs > 0 and waiting:
            path = waiting.pop()
            marks = marks_of(self.count, path)
            if marks in seen:
                continue
            seen.add(marks)
            runs -= 1
            made = self.all.run_ahead(marks)
            if made is None:
                continue
            trial = self.judged(path, *made)
            if better(trial.gained, best.gained, 1.0):
                best = trial
                self.all.keep()
                waiting = changes()
        return best

    def measured_at(self, computed: int) -> Found:
        """Returns the plan of so many computed steps, measured on the other samples."""
        if computed not in self.measured:
            self.measured[computed] = self.on_others(self.budget(computed))
        return self.measured[computed]

    def tier(self, budgets: Sequence[int], least: float) -> Found | None:
        """Returns the cheapest plan that surely has this PSNR; the one with a step less is refined to reach it."""
        place = next((i for i, n in enumerate(budgets) if self.budget(n).psnr >= least), len(budgets) - 1)
        while place < len(budgets) and self.measured_at(budgets[place]).sure < least:
            place += 1
        while place > 0 and self.measured_at(budgets[place - 1]).sure >= least:
            place -= 1
        found = self.measured_at(budgets[place]) if place < len(budgets) else None
        if place > 0 and (near := self.measured_at(budgets[place - 1])).sure >= least - NEAR:
            refined = self.on_others(self.refined(near))
            if refined.sure >= least:
                return refined
        return found

    def best_of(self, computed: int) -> Found:
        """Returns the better of the plan of so many computed steps and the same refined, on the other samples."""
        plain = self.measured_at(computed)
        return max(plain, self.on_others(self.refined(plain)), key=lambda found: found.expected)

    def edges(self) -> Iterator[str]:
        """Yields what shortest paths over stretches lose: with cheap errors, and with exact ones of one sample."""
        few = Fits(self.trajectory.of_first(FEW), sums=self.all.sums)

        def value(path: Path) -> float:
            latents = few.run(marks_of(self.count, path))[1]
            return psnr(self.decode(latents), self.film[: len(latents)])

        return compared(self.trajectory.of_first(EDGES), value)


def budget_of(steps: int, speed: float) -> int:
    """Returns how many of the steps are computed for this many times fewer forwards."""
    fewest = fewest_computed(steps)
    if not 1 <= speed <= steps / fewest:
        raise ValueError(f"calibrate: speed must be from 1 to {steps / fewest:.2f} at {steps} steps, got {speed:g}")
    return int(steps / speed + 1e-9)


def open_search(source: ModelSource, request: Request, progress: bool = False, loop: Loop = "own") -> Search:
    """Returns the search for plans of a request's sampler, steps and guidance, measured on its samples."""
    assert source.network is not None
    searched = range(request.count)
    others = range(request.count, (1 + UNSEEN) * request.count)
    keywords = source.adapter.step_keywords(request.steps)
    plain = plain_plan(source.whole, request.method, request.steps, request.scale, keywords, **source.made_for())

    def drawn(numbers: range) -> tuple[Denoiser, Tensor]:
        condition = source.condition_for(numbers, request.seed)
        null = condition.null if request.scale != 1.0 else {}
        denoiser = source.denoiser(source.model, condition.given, null, request.scale)
        return denoiser, source.noise(numbers, source.shape, request.seed)

    return Search(plain, source.network, *drawn(searched), source.vae.decode, progress, loop, drawn(others))


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
        request: sampler, steps and guidance; plans are searched on its first `count` samples and judged on later ones.
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
    budgets = list(range(max(FEWEST, fewest_computed(request.calls)), max(last * 3 // 5, FEWEST + 1)))
    curve: list[Found] = []
    with tqdm(desc="plans", unit="plan", disable=not progress) as bar:
        for computed in budgets if wanted else sorted(set(exactly.values())):
            curve.append(search.budget(computed))
            bar.update(len(search.found) - bar.n)
            if wanted and sum(at.psnr >= max(wanted.values()) for at in curve) == ENOUGH:
                break
        found = {name: search.tier(budgets, least) for name, least in wanted.items()}
        found |= {name: search.best_of(computed) for name, computed in exactly.items()}
        bar.update(len(search.found) - bar.n)
    if edges is not None:
        for line in search.edges():
            edges(line)
    for name, best in found.items():
        if best is None:
            reached = max(f.sure for f in search.measured.values())
            rule = f"at most the {reached:.1f} dB that reuse reaches here"
            raise ValueError(f"calibrate: psnr must be {rule}, got {wanted[name]:g}")
    return {name: best for name, best in found.items() if best is not None}, list(curve)
