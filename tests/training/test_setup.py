"""What a run is built with: readers of its data, compiled blocks."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast import Latte
from latte_fast.media.video import VideoError
from latte_fast.modules.compiling import compile_blocks
from latte_fast.training import Trainer, setup
from tests.helpers.pairs import SMALL
from tests.helpers.tiny_run import tiny


def test_readers_are_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(24)))
    assert [setup.readers(None, d) for d in (gpu, cpu)] == [4, 0]
    assert [setup.readers(n, d) for n in (0, 7) for d in (gpu, cpu)] == [0, 0, 7, 7]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert setup.readers(None, gpu) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert setup.readers(None, gpu) == 1


class Torn(torch.utils.data.Dataset):
    """Clips of which one does not decode."""

    def __init__(self, clips: Any):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        if key[1] == 4:
            raise VideoError("clip 4: does not decode")
        return self.clips[key]


@pytest.mark.parametrize("where", ["step", "reader"])
def test_an_error_leaves_no_reader_behind(tmp_path: Path, where: str) -> None:
    """They ignore SIGTERM, so python would wait for them at exit for ever while a traceback keeps their loader."""
    trainer = Trainer(tiny(tmp_path / "run", workers=2))
    if where == "step":
        trainer.objective.losses = lambda *args: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    else:
        trainer.objective.dataset = Torn(trainer.objective.dataset)
    with pytest.raises((ZeroDivisionError, VideoError)) as kept:
        trainer.run()
    assert kept.traceback and not multiprocessing.active_children()


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=8, automatic_dynamic_shapes=False)
def test_no_graph_of_a_compiled_block_is_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine sizes over two axes are 18 graphs of one function, where dynamo would stop after eight."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    # in the place of the compiler: graphs run as they were traced
    monkeypatch.setattr("torch._TorchCompileInductorWrapper.__call__", lambda self, graph, inputs: graph)
    model = Latte(**SMALL | {"depth": 2}, extend_time="sincos").eval()
    compile_blocks(model)
    counters.clear()
    with torch.no_grad():
        for frames in range(2, 11):
            x = torch.randn(1, frames, 4, 8, 8)
            assert torch.isfinite(model(x, torch.tensor([5]))).all()
    assert counters["stats"]["unique_graphs"] == 18
    assert torch._dynamo.config.recompile_limit >= 18
    torch._dynamo.reset()
