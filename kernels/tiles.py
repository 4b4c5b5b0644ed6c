"""Tile sizes of the kernels: an analytic default by shape, overridden by kernels/configs/<gpu>.json."""

import functools
import json
import logging
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

CONFIGS = Path(__file__).parent / "configs"
log = logging.getLogger("latte_fast")


@dataclass(frozen=True)
class RowsConfig:
    """A program walks rows one by one; programs_per_sm bounds how many programs share them."""

    warps: int
    stages: int
    programs_per_sm: int


@dataclass(frozen=True)
class TileConfig:
    """As RowsConfig, but a program walks tiles of block_r rows of one block of columns."""

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


@dataclass(frozen=True)
class HeldConfig:
    """A program holds block_n rows of weights whole in its registers."""

    block_n: int
    warps: int


@dataclass(frozen=True)
class DecodeConfig:
    """A head has `splits` programs, each of which walks its share of the keys by block_n."""

    block_n: int
    warps: int
    stages: int
    splits: int


Config = RowsConfig | TileConfig | PackedConfig | FlashConfig | HeldConfig | DecodeConfig


def power_of_2(n: int) -> int:
    """The least power of two that is not below n. Triton's own, made for kernels, costs every launch 3 us."""
    return 1 << (n - 1).bit_length()


def ceil_div(n: int, size: int) -> int:
    return -(-n // size)


@functools.cache
def file_stem(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


@functools.cache
def measured(gpu: str) -> dict[str, dict[str, Any]]:
    """Configs stored for a GPU, `<kernel>/<shape>` -> the fields they change; warns where there are none."""
    path = CONFIGS / f"{file_stem(gpu)}.json"
    if gpu in ("interpreter", "ahead"):
        return {}
    if not path.exists():
        log.warning("latte_fast: no tuned tiles for %s, so analytic ones; `latte-fast tune` measures them", gpu)
        return {}
    return json.loads(path.read_text())["configs"]


@dataclass(frozen=True)
class Gpu:
    name: str
    multiprocessors: int
    major: int


@functools.cache
def gpu_of(device: torch.device) -> Gpu:
    """Name and size of a device's GPU; the interpreter on the CPU counts as a small one."""
    if device.type != "cuda":
        return Gpu("interpreter", 2, 9)
    facts = torch.cuda.get_device_properties(device)
    return Gpu(facts.name, facts.multi_processor_count, facts.major)


@functools.cache
def choose(kernel: str, shape: str, default: Config, device: torch.device) -> Config:
    """The config of a kernel at a shape (`D1152-bf16`): the measured one of this GPU, else `default`."""
    known = {f.name for f in fields(default)}
    stored = measured(gpu_of(device).name).get(f"{kernel}/{shape}", {})
    return replace(default, **{name: value for name, value in stored.items() if name in known})


def rows_default(D: int, programs: int) -> RowsConfig:
    """At most 20 values a thread; `programs` is how many fit a multiprocessor's registers at D = 1152.

    Fewer warps repeat less: each warp has its own instructions for means, barriers and addresses, and at D = 1152 two
    warps issue 27 to 35 % less than four. Programs share the rows evenly and run together, so one more than fits would
    run its share alone after the others. Three stages: the next two rows are on their way to shared memory while a
    row's means are summed.
    """
    warps = min(16, power_of_2(ceil_div(D, 640)))
    # 28 programs of one warp fit at 72 registers a thread
    return RowsConfig(warps=warps, stages=3, programs_per_sm=min(28, max(1, programs * 1152 // D)))
