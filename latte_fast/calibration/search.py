"""The search for plans: picks the steps worth computing, and runs every plan that it proposes.

What a plan loses is measured, not predicted: the PSNR of its films to those of the plan that computes every step.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from latte_fast.calibration.reuse_errors import (
    FITTED,
    OBJECTIVES,
    PROBES,
    Edges,
    Path,
    Trajectory,
    fewest_computed,
    in_order,
    reused,
)
from latte_fast.calibration.trials import Trials, improved
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.runs.plan import Plan, PlanRow
from latte_fast.sampling.planned import Denoiser, plain_plan, run_plan
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import ModelSource

TIERS = {"high": 40.0, "fast": 32.0}  # least PSNR in dB
FEWEST = 6  # computed steps of the cheapest plan that is tried
RUNS = 40  # runs that refine a plan
SPARE = 0.1  # dB that a plan refined on few samples has to spare on all
EDGES = 2  # samples whose stretches are tried, as their errors only propose what is run
FEW = 4  # samples of these runs: two were seen to mislead
NEAR = 4.0  # dB below a tier from which a plan is refined
MARGIN = 0.5  # dB above a tier that its plan must have, as other samples may lose more
DENSE = 12  # computed steps up to which each number is on the curve; above it is every other
BEYOND = 1.0  # dB above the highest tier at which the curve ends


@dataclass(frozen=True)
class Found:
    """A plan that was run: its forwards, and the PSNR of its films to those of the plan that computes every step."""

    plan: Plan
    psnr: float

    def measured_plan(self) -> Plan:
        """Returns the plan with what was measured."""
        return replace(self.plan, measured={"psnr": round(self.psnr, 2), "forwards": self.plan.forwards})

    @property
    def speed(self) -> float:
        """Forwards of the whole plan over this plan's: an upper bound of the gain in time."""
        whole = sum(1.0 if row.guidance == "both" else 0.5 for row in self.plan.rows)
        return whole / self.plan.forwards


def plan_of(plan: Plan, path: Path, trajectory: Trajectory | None = None) -> Plan:
    """Returns the plan with only a path's steps computed; the steps after each are extrapolated with its order.

    Orders that are FITTED need the trajectory.
    """
    orders = dict(path)
    rows: list[PlanRow] = []
    order, earlier = 0, list[int]()
    for i, row in enumerate(plan.rows):
        if i in orders:
            order, earlier = orders[i], [i, *earlier]
            rows.append(row)
        else:
            rows.append(reused(trajectory, row, earlier, order, i))
    return replace(plan, rows=tuple(rows))


def path_of(plan: Plan) -> Path:
    """Returns a plan's computed steps, each with the order of the reuse that follows it; plan_of's inverse."""
    path: Path = []
    for i, row in enumerate(plan.rows):
        if row.compute:
            path.append((i, 0))
        elif plan.rows[i - 1].compute:
            path[-1] = (path[-1][0], FITTED if row.weights else row.order)
    return path


def psnr(a: Tensor, b: Tensor) -> float:
    """Returns the mean over samples of the PSNR between films in [-1, 1], (B, ...)."""
    error = ((a.clamp(-1, 1) - b.clamp(-1, 1)) / 2).double().pow(2).flatten(1).mean(1)
    return float((-10 * torch.log10(error.clamp_min(1e-20))).mean())


class Search:
    """Finds plans for a model, a sampler and a size; each is measured on the samples of the trajectory."""

    def __init__(
        self,
        plan: Plan,
        net: nn.Module,
        denoiser: Denoiser,
        noise: Tensor,
        decode: Callable[[Tensor], Tensor] = lambda x: x,
        progress: bool = False,
    ):
        self.decode = decode
        whole = len(plan.rows)
        with tqdm(total=whole * (2 + PROBES // 2), desc="calibrate", unit="step", disable=not progress) as bar:
            self.trajectory = Trajectory(plan, net, denoiser, noise, bar.update)
            few, fewer = (self.trajectory.of_first(count) for count in (FEW, EDGES))
            self.gains = fewer.sensitivity(bar.update)
            self.edges = Edges(fewer, self.gains, bar.update)
        self.trials = Trials(few, len(few.noise))
        self.film = decode(self.trajectory.result)
        self.found: list[Found] = []

    def measure(self, plan: Plan) -> Found:
        trajectory = self.trajectory
        reuse = StackReuse()
        trajectory.denoiser.reuse = reuse
        result = run_plan(plan, trajectory.net, trajectory.denoiser, trajectory.noise)
        found = Found(plan, psnr(self.decode(result), self.film))
        self.found.append(found)
        return found

    def budget(self, computed: int, measured: int = 2) -> Found:
        """Returns the best of the plans with this many computed steps."""
        starts = {name: self.edges.path(computed, name) for name in OBJECTIVES}
        for name, steps in hand_made(self.edges.count, computed).items():
            starts[name] = in_order([(i, 1) for i in steps])
        candidates = [*starts.values(), *(self.edges.improved(path)[1] for path in starts.values())]
        unlike = {tuple(path): path for path in candidates}
        ranked = sorted(unlike.values(), key=self.edges.predicted)[:measured]
        # what needs no search is always among those that are run
        by_hand = [in_order([(i, order) for i, _ in starts["late-dense"]]) for order in (1, FITTED)]
        tried = {tuple(path): path for path in [*ranked, *by_hand]}
        return self.measure(max((self.plan_of(path) for path in tried.values()), key=self.value))

    def plan_of(self, path: Path) -> Plan:
        return plan_of(self.trajectory.plan, path, self.trajectory)

    def value(self, plan: Plan) -> float:
        """Returns a plan's PSNR on a few samples."""
        return psnr(self.decode(self.trials.run(plan)), self.film[: self.trials.count])

    def refined(self, found: Found, runs: int = RUNS, enough: float = math.inf) -> Found:
        """Moves steps and changes orders of a plan as long as its PSNR on a few samples rises, within so many runs.

        It ends as soon as `enough` is reached on all samples.
        """

        def moves(plan: Plan) -> list[Plan]:
            return [self.plan_of(path) for path in self.edges.by_promise(path_of(plan))]

        # a few samples may reach what all do not
        for share in (1.0,) if enough == math.inf else (0.5, 0.25, 0.25):
            lacks = self.value(found.plan) + (enough - found.psnr) + SPARE
            plan = improved(found.plan, moves, self.value, self.trials.keep, int(runs * share), lacks)
            found = max(found, self.measure(plan), key=lambda f: f.psnr)
            if found.psnr >= enough:
                break
        return found

    def tier(self, curve: Sequence[Found], least: float) -> Found | None:
        """Returns the cheapest plan with at least this PSNR, after refining those that are just below it."""
        below = [found for found in curve if least - NEAR <= found.psnr < least]
        for near in sorted(below, key=lambda found: -found.plan.forwards):
            if self.refined(near, enough=least).psnr < least:
                break
        good = [found for found in self.found if found.psnr >= least]
        return min(good, key=lambda found: (found.plan.forwards, -found.psnr)) if good else None


def hand_made(count: int, computed: int) -> dict[str, list[int]]:
    """Returns masks that need no search: computed steps even, dense early, dense late (u -> 1 - (1 - u)^1.5)."""
    shapes: dict[str, Callable[[float], float]] = {
        "even": lambda u: u,
        "early-dense": lambda u: u**1.5,
        "late-dense": lambda u: 1 - (1 - u) ** 1.5,
    }
    out = {}
    for name, shape in shapes.items():
        steps = sorted({round((count - 1) * shape(i / (computed - 1))) for i in range(computed)})
        free = itertools.filterfalse(set(steps).__contains__, range(count))
        while len(steps) < computed:  # two rounded to one
            steps = sorted([*steps, next(free)])
        out[name] = steps
    return out


def budget_of(steps: int, speed: float) -> int:
    """Returns how many of the steps are computed for this many times fewer forwards."""
    fewest = fewest_computed(steps)
    if not 1 <= speed <= steps / fewest:
        raise ValueError(f"calibrate: speed must be from 1 to {steps / fewest:.2f} at {steps} steps, got {speed:g}")
    return int(steps / speed + 1e-9)


def open_search(source: ModelSource, request: Request, progress: bool = False) -> Search:
    """Returns the search for plans of a request's sampler, steps and guidance, measured on its samples."""
    numbers = range(request.count)
    condition = source.condition_for(numbers, request.seed)
    null = condition.null if request.scale != 1.0 else {}
    denoiser = source.denoiser(source.model, condition.given, null, request.scale)
    keywords = source.adapter.step_keywords(request.steps)
    plain = plain_plan(source.whole, request.method, request.steps, request.scale, keywords, **source.made_for())
    assert source.network is not None
    noise = source.noise(numbers, source.shape, request.seed)
    return Search(plain, source.network, denoiser, noise, source.vae.decode, progress)


def calibrate(
    source: ModelSource,
    request: Request,
    tiers: dict[str, float] | None = None,
    progress: bool = False,
    speeds: dict[str, float] | None = None,
) -> tuple[dict[str, Found], list[Found]]:
    """Searches plans for a model and a sampler: the cheapest for each tier, and the best for each number of steps.

    Args:
        source: model, its conditions and its decoder.
        request: sampler, steps and guidance; its first `count` samples are what the loss is measured on.
        tiers: least PSNR in dB by name; by default TIERS, or none with speeds.
        progress: whether to show progress bars.
        speeds: by name, how many times fewer forwards than with every step computed; the best plan of each is found.
    """
    wanted = tiers or ({} if speeds else TIERS)
    exactly = {name: budget_of(request.calls, speed) for name, speed in (speeds or {}).items()}
    search = open_search(source, request, progress)
    last = request.calls - 1
    budgets = range(max(FEWEST, search.edges.fewest), max(last * 3 // 5, FEWEST + 1))
    curve: list[Found] = []
    with tqdm(desc="plans", unit="plan", disable=not progress) as bar:
        every = [n for n in budgets if n <= DENSE or n % 2 == 0]
        for computed in every if wanted else sorted(set(exactly.values())):
            curve.append(search.budget(computed))
            bar.update(len(search.found) - bar.n)
            # the curve ends where it has risen well above what is asked for
            if wanted and curve[-1].psnr > max(wanted.values()) + BEYOND:
                break
        found = {name: search.tier(curve, least + MARGIN) for name, least in wanted.items()}
        known = {at.plan.computed: at for at in curve}
        for name, computed in exactly.items():
            found[name] = search.refined(known[computed] if computed in known else search.budget(computed))
        bar.update(len(search.found) - bar.n)
    for name, best in found.items():
        if best is None:
            reached = max(f.psnr for f in search.found) - MARGIN
            rule = f"at most the {reached:.1f} dB that reuse reaches here"
            raise ValueError(f"calibrate: psnr must be {rule}, got {wanted[name]:g}")
    return {name: best for name, best in found.items() if best is not None}, curve
