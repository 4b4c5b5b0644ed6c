"""Precision, recall, density and coverage: balls about each row that reach to its k-th nearest neighbour."""

import torch
from torch import Tensor

from latte_fast.evaluation.score import Score, replicates, resampled

# rows of distances that are in memory at once
ROWS = 1024
NAMES = ("precision", "recall", "density", "coverage")


def manifold_scores(samples: Tensor, real: Tensor, k: int) -> dict[str, Tensor]:
    """Returns the terms whose means are the four scores: one a sample for precision and density, else one a real row.

    Args:
        samples: features (N, D).
        real: features (M, D).
        k: number of the neighbour to which a row's ball reaches, the row itself not counted.
    """
    fewest = min(len(samples), len(real))
    if not 1 <= k < fewest:
        raise ValueError(f"evaluate: neighbours must be below the {fewest} rows of the smaller set, got {k}")
    x, y = samples.double(), real.double()
    own_x, own_y = _reach(x, k), _reach(y, k)
    in_real, in_samples = torch.zeros(len(x)).double(), torch.zeros(len(y)).double()
    near = torch.zeros(len(y)).double()
    for at in range(0, len(y), ROWS):
        apart = torch.cdist(y[at : at + ROWS], x, compute_mode="donot_use_mm_for_euclid_dist")  # (m, N)
        rows = slice(at, at + len(apart))
        inside = apart < own_y[rows, None]
        in_real += inside.sum(0)
        in_samples[rows] = (apart < own_x).any(1).double()
        near[rows] = inside.any(1).double()
    return dict(zip(NAMES, ((in_real > 0).double(), in_samples, in_real / k, near), strict=True))


def manifold_score(samples: Tensor, real: Tensor, settings: dict[str, int]) -> Score:
    """Returns precision with all four scores as `values`; the interval is that of precision over the samples.

    A bootstrap over rows would shrink the balls, as a row drawn twice is its own neighbour, so it is over the terms.
    """
    terms = manifold_scores(samples, real, settings["neighbours"])
    again = replicates(settings, lambda draw: float(resampled(terms["precision"], draw).mean()))
    values = {name: float(term.mean()) for name, term in terms.items()}
    if settings.get("bootstrap"):
        for name, term in terms.items():
            low_high = Score(values[name]).bounded(
                replicates(settings, lambda draw, term=term: float(resampled(term, draw).mean()))  # type: ignore[misc]
            )
            assert low_high.interval is not None
            values[f"{name}_low"], values[f"{name}_high"] = low_high.interval
    return Score(values["precision"], None, values).bounded(again)


def _reach(rows: Tensor, k: int) -> Tensor:
    """Returns each row's distance from its k-th nearest neighbour."""
    found = []
    for at in range(0, len(rows), ROWS):
        apart = torch.cdist(rows[at : at + ROWS], rows, compute_mode="donot_use_mm_for_euclid_dist")
        # the row itself is the nearest, at 0
        found.append(apart.kthvalue(k + 1, 1).values)
    return torch.cat(found)
