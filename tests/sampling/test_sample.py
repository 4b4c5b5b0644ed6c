"""latte_fast.sample and latte_fast.load: one call from a path, a loaded run or a model to clips."""

from pathlib import Path

import pytest
import torch

import latte_fast
from latte_fast import Latte, testing
from latte_fast.runs.load import Trained
from latte_fast.training import Trainer
from tests.helpers.tiny_run import tiny

SIZES = {"input_size": 8, "patch_size": 4, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "run"
    Trainer(tiny(out, steps=2)).run()
    return out


def test_path_and_loaded_run_give_the_same_clips(run: Path) -> None:
    classes = ("circle up", 3)
    drawn = latte_fast.sample(run, classes=classes, samples=3, steps=3, batch=2, progress=False)
    assert drawn is not None and drawn.videos.shape == (3, 2, 8, 8, 3) and drawn.videos.dtype == torch.uint8
    assert drawn.names == ["circle up", "circle down", "circle up"]
    trained = latte_fast.load(run)
    assert isinstance(trained, Trained) and trained.step == 2 and not trained.model.training
    again = latte_fast.sample(trained, classes=classes, samples=3, steps=3, batch=2, progress=False)
    assert again is not None and torch.equal(again.videos, drawn.videos)


def test_files_are_the_returned_clips(run: Path, tmp_path: Path) -> None:
    import numpy as np

    drawn = latte_fast.sample(run, samples=2, steps=2, seed=3, progress=False)
    assert latte_fast.sample(run, samples=2, steps=2, seed=3, out=tmp_path / "out", format="npz") is None
    assert drawn is not None
    for i in range(2):
        assert np.array_equal(np.load(tmp_path / "out" / f"{i:06d}.npz")["video"], drawn.videos[i].numpy())


def test_a_model_at_hand_is_sampled() -> None:
    model = testing.refill(Latte(**SIZES, num_frames=4))
    drawn = latte_fast.sample(model, samples=1, steps=2, vae="identity", progress=False)
    assert drawn is not None and drawn.videos.shape == (1, 4, 8, 8, 3)
    with pytest.raises(ValueError, match=r"guidance must be left out for a model without classes, got 2\.0"):
        latte_fast.sample(model, samples=1, steps=2, guidance=2.0, progress=False)
    with pytest.raises(TypeError, match="model must be of latte, flex_latte, latte_t2v, flex_latte_t2v, got Linear"):
        latte_fast.sample(torch.nn.Linear(2, 2))


def test_public_names_are_found_by_name() -> None:
    for name in latte_fast.__all__:
        assert getattr(latte_fast, name) is not None and name in dir(latte_fast)
    assert callable(latte_fast.cost) and callable(latte_fast.sample)
    with pytest.raises(AttributeError, match="module 'latte_fast' has no attribute 'fly'"):
        _ = latte_fast.fly
