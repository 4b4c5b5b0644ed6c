"""Measures tile sizes on the current GPU: times the candidates of each kernel of a launch and stores the fastest."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

from latte_fast.kernels import tiles
from latte_fast.kernels.tiles import (
    Config,
    DecodeConfig,
    FlashConfig,
    HeldConfig,
    PackedConfig,
    RowsConfig,
    TileConfig,
)

# larger than any L2 here, so that each repetition finds its inputs in memory
FLUSH_BYTES = 256 * 2**20
# eight keep the GPU busy for about half a millisecond, in which Python queues all launches of a backward: the events
# then time kernels and not the wait for Python
FLUSHES = 8


def candidates(default: Config) -> Iterator[Config]:
    """The analytic configuration, then others around it."""
    grids: dict[type, dict[str, tuple[int, ...]]] = {
        RowsConfig: {"warps": (1, 2, 4), "stages": (2, 3, 4), "programs_per_sm": (3, 4, 6, 8, 12, 16)},
        TileConfig: {"block_r": (1, 2, 4, 8), "warps": (4, 8), "stages": (1, 2), "programs_per_sm": (4, 7, 32, 64)},
        PackedConfig: {"pack": (1, 2, 4, 8), "warps": (1, 2, 4, 8)},
        FlashConfig: {"block_m": (64, 128), "block_n": (32, 64, 128), "warps": (4, 8), "stages": (2, 3, 4)},
        HeldConfig: {"block_n": (4, 8, 16), "warps": (2, 4, 8, 16)},
        DecodeConfig: {"block_n": (64, 128), "warps": (4, 8), "stages": (1, 2, 3), "splits": (1, 2, 4, 8, 16)},
    }
    grid = grids[type(default)]
    yield default
    for values in itertools.product(*grid.values()):
        candidate = replace(default, **dict(zip(grid, values, strict=True)))
        # 16 rows of a product a warp; with 32 its sums overflow the registers
        fits = not isinstance(candidate, FlashConfig) or candidate.block_m == 16 * candidate.warps
        if candidate != default and fits:
            yield candidate


def milliseconds(launch: Callable[[], object], repetitions: int = 20) -> float:
    """The median time of a launch on the current CUDA device, each from a cold L2."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(3):
        launch()
    times = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSHES):
            flush.zero_()
        start.record()
        launch()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def chosen_tiles(launch: Callable[[], object]) -> dict[str, tuple[Config, torch.device]]:
    """`<kernel>/<shape>` -> (analytic config, device) of every tile a launch asks for."""
    found: dict[str, tuple[Config, torch.device]] = {}
    choose = tiles.choose

    def record(kernel: str, shape: str, default: Config, device: torch.device) -> Config:
        found[f"{kernel}/{shape}"] = (default, device)
        return choose(kernel, shape, default, device)

    tiles.choose = record
    try:
        launch()
    finally:
        tiles.choose = choose
    return found


def tune(
    launches: list[Callable[[], object]], timer: Callable[[Callable[[], object]], float] = milliseconds
) -> dict[str, dict[str, int]]:
    """`<kernel>/<shape>` -> fields of the fastest config in these launches, where it beats the analytic one by 2 %.

    Where it does not, the analytic config replaces one that an earlier measurement stored.
    """
    best: dict[str, dict[str, int]] = {}
    for launch in launches:
        for key, (default, device) in chosen_tiles(launch).items():
            stored = tiles.measured(tiles.gpu_of(device).name)
            before = stored.pop(key, None)
            times: dict[Config, float] = {}
            for candidate in candidates(default):
                stored[key] = asdict(candidate)
                tiles.choose.cache_clear()
                try:
                    times[candidate] = timer(launch)
                # a tile too large for this GPU is no candidate
                except (OutOfResources, PTXASError):
                    continue
            fastest = min(times, key=times.__getitem__)
            stored.pop(key)
            if times[fastest] < 0.98 * times[default]:
                best[key] = stored[key] = asdict(fastest)
            elif before is not None:
                best[key] = stored[key] = asdict(default)
            tiles.choose.cache_clear()
    return best


def save(configs: dict[str, dict[str, Any]], device: torch.device) -> None:
    """Merges configs into kernels/configs/<gpu>.json, with the versions they were measured with."""
    gpu = tiles.gpu_of(device).name
    path = tiles.CONFIGS / f"{tiles.file_stem(gpu)}.json"
    known = json.loads(path.read_text())["configs"] if path.exists() else {}
    facts = {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}
    tiles.CONFIGS.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**facts, "configs": dict(sorted((known | configs).items()))}, indent=1) + "\n")
    partial.replace(path)
