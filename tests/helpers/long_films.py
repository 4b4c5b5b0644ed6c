"""A tiny source of clips for tests of long films, and DDIM's step written out in float64.

python -m tests.helpers.long_films {one,two,killed} KIND FRAMES FOLDER     draws films in one way
"""

import os
import random
import signal
import sys
import time
import weakref
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latte_fast import Latte, testing
from latte_fast.codecs.vae import Identity
from latte_fast.config import LatteConfig
from latte_fast.long_films import store
from latte_fast.long_films.request import LongOptions, LongRequest
from latte_fast.long_films.source import LongSource
from latte_fast.long_films.store import work_off
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.runs.config import DiffusionConfig
from latte_fast.sampling.files import sample_files
from latte_fast.sampling.source import ModelSource
from latte_fast.training import Ranks
from tests.helpers.forks import finish, fork, on_ranks

FRAMES = 4
SIZES: dict[str, Any] = {
    "input_size": 8, "patch_size": 4, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2,
    "num_frames": FRAMES, "num_classes": 3, "extras": 2, "learn_sigma": False,
}  # fmt: skip


def source(process: DiffusionConfig | None = None, device: str = "cpu", **changes: Any) -> ModelSource:
    """A Latte of four frames with random weights, which computes in float64."""
    torch.manual_seed(0)
    sizes = SIZES | changes
    net = testing.refill(Latte(**sizes)).double().eval()
    adapter = LatteAdapter(LatteConfig(**sizes), ["a", "b", "c"][: sizes["num_classes"]])
    shape = (sizes["num_frames"], sizes["in_channels"], sizes["input_size"], sizes["input_size"])

    def model(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return adapter.call(net, x, t, **conditions)

    process = process or DiffusionConfig(prediction="start_x")
    made = ModelSource(model, adapter, process, Identity(), shape, True, torch.device(device), torch.float64)
    made.network = net
    return made


def request(kind: str, frames: int, steps: int, options: dict[str, Any] | None = None, **given: Any) -> LongRequest:
    given = {"count": 2, "batch": 2, "scale": 2.0} | given
    return LongRequest(kind=kind, frames=frames, steps=steps, options=LongOptions(**(options or {})), **given)


def drawn(films: LongSource, asked: LongRequest, folder: Path, numbers: tuple[int, ...] = (0, 1)) -> Tensor:
    """Returns the latents (B, F, C, h, w) of films."""
    ticks: list[int] = []
    asked = films.complete(asked)
    work = films.work(asked, numbers, folder / "film", ticks.append)
    work_off(work, folder / "kept", "", ticks.append)
    assert sum(ticks) == asked.forwards
    return work.film.read(0, work.film.frames)


class Live(TorchDispatchMode):
    """Knows the bytes of all tensors that are made within it, and the most that there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Counter[int] = Counter()  # tensors by storage
        self.bytes = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                self.bytes += 0 if self.held[key] else size
                self.held[key] += 1
                weakref.finalize(x, self.forget, key, size)
        self.most = max(self.most, self.bytes)
        return out

    def forget(self, key: int, size: int) -> None:
        self.held[key] -= 1
        self.bytes -= 0 if self.held[key] else size


class Slow:
    """A model that predicts x_0, guided, and DDIM on frames, by the published formulas."""

    def __init__(self, made: ModelSource, asked: LongRequest):
        self.source, self.scale = made, asked.scale
        kept = [round(i * 999 / (asked.steps - 1)) for i in range(asked.steps)]
        bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[kept]
        self.kept, self.bar, self.before = kept, bars, np.append(1.0, bars[:-1])

    def starts(self, x: Tensor, levels: list[int], label: int) -> Tensor:
        """The model's x_0 (f, C, h, w) of one window of one film, at a step for each frame."""
        t = torch.tensor([[self.kept[max(level, 0)] for level in levels]])
        with torch.no_grad():
            given, null = (self.source.model(x[None].double(), t, y=torch.tensor([y]))[0].float() for y in (label, 3))
        return null + self.scale * (given - null)

    def step(self, x: Tensor, start: Tensor, level: int, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
        """x_0 (C, h, w) and x at a step -> x a step on."""
        bar, before = self.bar[level], self.before[level]
        start = start.clamp(-1, 1).double()
        eps = (x.double() - np.sqrt(bar) * start) / np.sqrt(1 - bar)
        sigma = eta * np.sqrt((1 - before) / (1 - bar) * (1 - bar / before))
        out = np.sqrt(before) * start + np.sqrt(1 - before - sigma**2) * eps
        return (out if noise is None or not level else out + sigma * noise).float()


def main(how: str, kind: str, frames: int, out: Path) -> None:
    torch.set_num_threads(1)
    films = LongSource(source(), 1.0)
    asked = films.complete(request(kind, frames, 8, count=5, batch=1))

    def draw(ranks: Ranks) -> None:
        store.KEPT_EVERY = 0.05
        sample_files(films, asked, out, ranks, resume=True)

    if how == "killed":
        rng = random.Random(kind)
        for _ in range(6):
            child = fork(lambda: draw(Ranks()))
            time.sleep(rng.uniform(0.1, 0.5))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        finish(fork(lambda: draw(Ranks())))
    else:
        on_ranks(2 if how == "two" else 1, draw)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
