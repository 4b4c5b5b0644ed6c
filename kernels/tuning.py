"""How big a tile each kernel takes: an analytic default from shape and device, overridden by kernels/configs/<gpu>.json."""

import functools
import json
import logging
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

CONFIGS = Path(__file__).parent / "configs"
log = logging.getLogger("latte_fast")


@dataclass(frozen=True)
class RowsConfig:
    """A program walks tiles of block_r rows; programs_per_sm bounds how many programs share the rows."""

    block_r: int
    warps: int
    stages: int
    programs_per_sm: int


@dataclass(frozen=True)
class PackedConfig:
    """A program attends over `pack` (position, head) sequences, each one tile."""

    pack: int
    warps: int


@dataclass(frozen=True)
class FlashConfig:
    """A program owns block_m rows of the side it writes and loops over block_n of the other."""

    block_m: int
    block_n: int
    warps: int
    stages: int


Config = RowsConfig | PackedConfig | FlashConfig


@functools.cache
def file_stem(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


@functools.cache
def measured(gpu: str) -> dict[str, dict[str, int]]:
    """What the tuner stored for a GPU: `<kernel>/<shape>` -> the fields it changes. Warns once where it stored nothing."""
    path = CONFIGS / f"{file_stem(gpu)}.json"
    if not path.exists():
        log.warning("latte_fast: no tuned tiles for %s, so analytic ones; `latte-fast tune` measures them", gpu)
        return {}
    return json.loads(path.read_text())["configs"]


@functools.cache
def gpu_of(device: torch.device) -> tuple[str, int]:
    """(name, multiprocessors); the interpreter on the CPU counts as a small one."""
    if device.type != "cuda":
        return "interpreter", 2
    facts = torch.cuda.get_device_properties(device)
    return facts.name, facts.multi_processor_count


@functools.cache
def choose(kernel: str, shape: str, default: Config, device: torch.device) -> Config:
    """The config of a kernel at a shape (`D1152-bf16`): the measured one of this GPU, else `default`."""
    if device.type != "cuda":
        return default
    known = {f.name for f in fields(default)}
    stored = measured(gpu_of(device)[0]).get(f"{kernel}/{shape}", {})
    return replace(default, **{name: value for name, value in stored.items() if name in known})


def floor_power_of_2(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


def rows_default(D: int, values: int, programs_per_sm: int, stages: int = 1) -> RowsConfig:
    """Tiles of about `values` values over 128 threads, which is what the registers hold; one row where D is larger."""
    return RowsConfig(
        block_r=min(16, floor_power_of_2(values // D)),
        warps=4 if D <= 2048 else 8,
        stages=stages,
        programs_per_sm=programs_per_sm,
    )
