"""A stand-in for CUDA graphs where there is no GPU, and inputs for a replayed model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latte_fast.cuda_graphs import replay


class Played:
    """Stands in for CUDA graphs: a replay repeats the captured call on its own inputs, into its own output."""

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.playing = False  # whether what runs stands for a graph's kernels
        self.pools: list[Any] = []

    @classmethod
    def put_in_place(cls, monkeypatch: pytest.MonkeyPatch) -> "Played":
        """Lets Replay take every tensor for a GPU's, and this for its graphs."""
        played = cls()
        monkeypatch.setattr(replay, "on_gpu", lambda x: True)
        monkeypatch.setattr(replay, "is_capturing", lambda: False)
        monkeypatch.setattr(replay, "new_pool", object)
        monkeypatch.setattr(replay, "capture", played.capture)
        return played

    def capture(self, call: Callable[[], Tensor], device: torch.device, pool: Any) -> tuple[Callable[[], None], Tensor]:
        self.captures += 1
        self.pools.append(pool)
        made = call()
        assert not made.requires_grad  # else autograd's graph would keep every activation as long as the CUDA graph
        output = torch.full_like(made, float("nan") if made.is_floating_point() else -1)

        def again() -> None:
            self.replays += 1
            self.playing = True
            with torch.no_grad():
                output.copy_(call())
            self.playing = False

        return again, output


def clip(batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, 4, 8, 8, generator=generator)
    return x, torch.arange(5, 5 + batch), torch.arange(batch)
