"""Small lists of combinations of settings, and their test ids."""

import itertools
import random
from collections.abc import Iterable


def cell_id(cell: dict) -> str:
    return "-".join(str(v).replace(" ", "") for v in cell.values())


def pairwise(axes: dict[str, Iterable], seed: int = 0) -> list[dict]:
    """Returns a small list of cells in which every pair of values of any two axes occurs at least once."""
    rng = random.Random(seed)
    names = list(axes)
    values = {n: list(axes[n]) for n in names}
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(values[a]))
        for j in range(len(values[b]))
    }
    cells = []
    while missing:
        a, i, b, j = min(missing, key=str)
        best: tuple[int, dict[str, int]] = (-1, {})
        for _ in range(32):
            cell = {n: rng.randrange(len(values[n])) for n in names} | {a: i, b: j}
            gain = sum((p, cell[p], q, cell[q]) in missing for p, q in itertools.combinations(names, 2))
            best = max(best, (gain, cell), key=lambda pair: pair[0])
        cell = best[1]
        missing -= {(p, cell[p], q, cell[q]) for p, q in itertools.combinations(names, 2)}
        cells.append({n: values[n][cell[n]] for n in names})
    return cells
