"""Prints what plans save and lose on trained models, beside hand-made masks, fewer steps and published rules.

python -m benchmarks.reuse RUN [RUN ...]              end to end: seconds, PSNR, and the share that is recognised
python -m benchmarks.reuse RUN --part contenders      PSNR at equal computed forwards
python -m benchmarks.reuse RUN --part samplers        distance to one converged film, beside fewer steps of others

Plans are those beside the runs, or found first. All is judged on samples that no plan was searched on.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.reuse.race import HELD_OUT, Race, Result, attention_share, seconds
from latte_fast.calibration.plans import find_plans
from latte_fast.calibration.search import Found, Search, calibrate, psnr
from latte_fast.data.shapes import CLASSES
from latte_fast.evaluation.shapes_classifier import Recogniser, share_recognised, train_recogniser
from latte_fast.media.pixels import normalise
from latte_fast.runs.load import load
from latte_fast.runs.plan import PLANS, load_plan
from latte_fast.sampling.planned import plain_plan
from latte_fast.sampling.request import Request
from latte_fast.sampling.sample import open_source
from latte_fast.sampling.source import ModelSource

STEPS, GUIDANCE, CONVERGED = 50, 4.0, 1000
BUDGETS = (8, 10, 12, 14, 17, 20, 25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs on moving shapes")
    parser.add_argument("--part", choices=("end-to-end", "contenders", "samplers"), default="end-to-end")
    parser.add_argument("--batch", type=int, default=64, help="samples of the timed runs, drawn at once")
    parser.add_argument("--samples", type=int, default=16, help="samples that losses are measured on")
    parser.add_argument("--budgets", type=int, nargs="*", default=list(BUDGETS), help="numbers of computed steps")
    parser.add_argument("--threads", type=int, help="number of torch's threads")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    parts = {
        "end-to-end": lambda source, run: end_to_end(source, run, given.batch),
        "contenders": lambda source, run: contenders(source, given.samples, given.budgets),
        "samplers": lambda source, run: samplers(source, run, given.samples),
    }
    for run in given.runs:
        source = open_source(load(run), None, (), torch.float32, "cpu")
        print(f"\n### {run.name}: {given.part}, {torch.get_num_threads()} threads\n")
        for line in parts[given.part](source, run):
            print(line, flush=True)


def table(results: Iterator[Result]) -> Iterator[str]:
    yield "| | forwards | PSNR (dB) | |"
    yield "|---|---|---|---|"
    for r in results:
        yield f"| {r.name} | {r.forwards:.1f} | {r.psnr:.2f} | {r.note} |"


def recogniser(source: ModelSource) -> Recogniser:
    frames, _, side, _ = source.shape
    return train_recogniser(frames, side, shown(source), steps=400)[0]


def shown(source: ModelSource) -> list[int]:
    """Returns the numbers of the shapes that a run's labels stand for: classes by name, captions by their words."""
    names = source.adapter.label_names()
    words = [[n for n, c in enumerate(CLASSES) if set(c.split()) <= set(name.split())] for name in names]
    return [found[0] for found in words]


def end_to_end(source: ModelSource, run: Path, batch: int) -> Iterator[str]:
    """Yields seconds, PSNR and recognised share of every quality, each drawn once at a batch."""
    if not (run / PLANS / "fast.json").is_file():
        spent, _ = seconds(lambda: find_plans(run, progress=True))
        yield f"`latte-fast calibrate`: {spent:.0f} s\n"
    network = recogniser(source)
    labels = torch.arange(source.adapter.choices).repeat(batch)[:batch]
    source.wanted = list(range(source.adapter.choices))
    begin = HELD_OUT * source.adapter.choices
    numbers = range(begin, begin + batch)
    common = {"count": batch, "batch": batch, "steps": STEPS, "scale": GUIDANCE}
    requests = {
        "exact": Request(**common),
        "lossless": Request(**common, lossless=True),
        **{q: Request(**common, plan=str(run / PLANS / f"{q}.json")) for q in ("high", "fast")},
    }
    source.draw(Request(count=batch, batch=batch, steps=2), numbers)  # warms up
    source.made_for()
    yield "| quality | computed | seconds | faster | PSNR (dB) | recognised |"
    yield "|---|---|---|---|---|---|"
    first, exact = 0.0, torch.empty(0)
    for name, request in requests.items():
        spent, (videos, _) = seconds(lambda r=request: source.draw(r, numbers))  # type: ignore[misc]
        film = normalise(videos.movedim(-1, -3))
        if name == "exact":
            first, exact = spent, film
        loss = "" if name == "exact" else f"{psnr(film, exact):.1f}"
        if name == "lossless" and torch.equal(film, exact):
            loss = "same pixels"
        plan = load_plan(request.plan) if request.plan else None
        computed = STEPS if plan is None else plan.computed
        share = share_recognised(network, film, labels)
        yield f"| {name} | {computed} | {spent:.2f} | {first / spent:.2f}x | {loss} | {share:.1%} |"


def contenders(source: ModelSource, samples: int, budgets: Sequence[int]) -> Iterator[str]:
    """Yields the PSNR of searched plans, hand-made masks and published rules by number of computed steps."""
    search = searched(source)
    race = Race(source, "ddim", STEPS, GUIDANCE, samples)

    def results() -> Iterator[Result]:
        for computed in budgets:
            yield race.plan("**plan**", best_of(search, computed).plan)
            yield race.masks(computed)
            yield from race.contenders(computed)
        if hasattr(source.network, "x_embedder"):
            for result in race.broadcasts(attention_share(source.adapter.config)):
                yield result
                yield race.plan("**plan**", search.budget(int(result.forwards)).plan)

    yield from table(results())


def searched(source: ModelSource, method: str = "ddim") -> Search:
    condition = source.condition_for(range(8), 0)
    denoiser = source.denoiser(source.model, condition.given, condition.null, GUIDANCE)
    plain = plain_plan(source.whole, method, STEPS, GUIDANCE, source.adapter.step_keywords(STEPS))
    assert source.network is not None
    noise = source.noise(range(8), source.shape, 0)
    return Search(plain, source.network, denoiser, noise, source.vae.decode, progress=True)


def best_of(search: Search, computed: int) -> Found:
    return search.refined(search.budget(computed))


def samplers(source: ModelSource, run: Path, samples: int) -> Iterator[str]:
    """Yields the PSNR to one converged film, of plans and of fewer steps of other samplers."""
    converged = Race(source, "dpm++", CONVERGED, GUIDANCE, samples).exact

    def distance(method: str, steps: int) -> Result:
        made = Race(source, method, steps, GUIDANCE, samples)
        return Result(f"{method}, {steps} steps", steps, psnr(made.exact, converged))

    def results() -> Iterator[Result]:
        for steps in (8, 10, 12, 14, 17, 20, 25, STEPS):
            for method in ("ddim", "dpm++", "unipc"):
                yield distance(method, steps)
        for method in ("ddim", "dpm++", "unipc"):
            found, _ = calibrate(source, Request(count=8, steps=STEPS, method=method, scale=GUIDANCE))  # type: ignore[arg-type]
            race = Race(source, method, STEPS, GUIDANCE, samples)
            for quality, best in found.items():
                latents = source.follow(best.plan, race.denoiser(), race.noise)
                loss = psnr(race.film(latents), converged)
                yield Result(f"{method}, 50 steps, plan {quality}", best.plan.forwards, loss)

    yield from table(results())


if __name__ == "__main__":
    main()
