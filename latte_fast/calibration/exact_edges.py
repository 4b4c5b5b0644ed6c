"""The exact variant of a stretch's error: each is run to x_0 with every later step computed, on one sample."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from latte_fast.calibration.edges import BEFORE, LONGEST, OBJECTIVES, Edges, rest_of, rms, sensitivity
from latte_fast.calibration.paths import Path
from latte_fast.calibration.trajectory import Trajectory
from latte_fast.sampling.planned import Denoiser, run_plan

SHOWN = (8, 12, 16)  # computed steps at which the paths of both variants are run


def exact_edges(cheap: Edges, tick: Callable[[], object] = lambda: None) -> Edges:
    """Returns the edges of the first sample as they are when each stretch's end is run to x_0.

    The step computed before a stretch is one as far away as its end, where there is one.
    """
    one = cheap.trajectory.of_first(1)
    out = Edges(one, cheap.gains)
    films: dict[int, list[tuple[int, Tensor]]] = {}
    for i in range(out.count - 1):
        for p in {before(i, j) for j in range(i + 2, i + LONGEST + 1)}:
            for j, x in out.stretch(p, i).items():
                if before(i, j) == p:
                    films.setdefault(j, []).append((i, x))
    for j, ends in films.items():
        x = torch.cat([x for _, x in ends])
        film = run_plan(rest_of(one.plan, j), None, repeated(one.denoiser, len(x)), x, lambda *_: tick())
        for (i, _), end in zip(ends, film, strict=True):
            gain = rms(end - one.result[0]) / max(out.cost[before(i, j), i, j] / out.gains[j], 1e-12)
            # what was measured with one step before it holds for all
            for p in (None, *range(max(0, i - BEFORE), i)):
                out.cost[p, i, j] *= gain / out.gains[j]
    return out


def before(i: int, j: int) -> int | None:
    return max(2 * i - j, i - BEFORE) if 2 * i - j >= 0 else None


def repeated(denoiser: Denoiser, count: int) -> Denoiser:
    """Returns a denoiser of the same sample many times."""
    out = denoiser.of_first(1)
    halves = {name: value.chunk(2) for name, value in (out.doubled or {}).items()}
    out.given = {name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in out.given.items()}
    if out.doubled is not None:
        both = {name: [half.repeat(count, *[1] * (half.dim() - 1)) for half in pair] for name, pair in halves.items()}
        out.doubled = {name: torch.cat(pair) for name, pair in both.items()}
    return out


def compared(trajectory: Trajectory, value: Callable[[Path], float]) -> Iterator[str]:
    """Yields what the shortest paths over cheap errors lose, and those over exact errors; and how both rank stretches.

    Args:
        trajectory: run that computed every step, of a few samples.
        value: function that returns the PSNR of a path.
    """
    one = trajectory.of_first(1)
    cheap = Edges(one, sensitivity(one))
    exact = exact_edges(cheap)
    stretches = [(before(i, j), i, j) for p, i, j in cheap.cost if p is None and j > i + 1]
    errors = np.array([[edges.cost[at] for at in stretches] for edges in (cheap, exact)])
    ranks = errors.argsort(1).argsort(1)
    ratio = np.exp(np.abs(np.log((errors[0] / errors[1].clip(1e-12)).clip(1e-12))))
    yield f"{len(stretches)} stretches run to x_0 on one sample: errors apart by {np.median(ratio):.2f}x (median), "
    yield f"rank correlation {np.corrcoef(ranks)[0, 1]:.3f}"
    many = Edges(trajectory, sensitivity(trajectory))
    for computed, objective in itertools.product(SHOWN, OBJECTIVES):
        paths = [edges.path(computed, objective) for edges in (many, exact)]
        losses = [value(path) for path in paths if path is not None]
        if len(losses) == 2:
            yield f"{computed} computed, least {objective}: cheap {losses[0]:.2f} dB, exact {losses[1]:.2f} dB"
