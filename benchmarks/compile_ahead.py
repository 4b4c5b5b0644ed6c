"""Compiles a launcher's kernels without a GPU and reads registers, stack and memory accesses from the cubins."""

import contextlib
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from benchmarks import sass
from latte_fast.kernels import tiles

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# capability -> bytes of shared memory that (a multiprocessor, a program) may use
SHARED = {80: (164 * 1024, 163 * 1024), 90: (228 * 1024, 227 * 1024), 100: (228 * 1024, 227 * 1024)}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}


@dataclass(frozen=True)
class Usage:
    """Resources of a compiled kernel; `local` counts local loads and stores, `wide` is the share of 16-byte accesses.

    `loop` counts the instructions of the longest loop, which every warp issues once an iteration, `waits` the loads
    from global memory among them that are not prefetched, and `in_flight` the copies still pending where the loop
    waits. `total` counts all instructions of the kernel; `issued`, `fmas` and `special` are a warp's instructions, its
    multiply-adds on tensor cores and its special functions in the loop, or in the whole kernel if it has no loop.
    """

    kernel: str
    warps: int
    registers: int
    stack: int
    shared: int
    local: int
    wide: float
    occupancy: float
    loop: int
    waits: int
    in_flight: int
    total: int
    issued: int
    fmas: int
    special: int

    @property
    def resident(self) -> int:
        """Programs that a multiprocessor holds at a time."""
        return round(self.occupancy * 64 / self.warps)


class AheadDriver:
    """The part of a Triton driver that compiling needs."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextlib.contextmanager
def compiling_for(capability: int) -> Iterator[list[Any]]:
    """Context in which launches compile for the capability and run nothing; yields the list of compiled kernels.

    Launchers are called on meta tensors, whose address 0 is as aligned as a fresh allocation's, so that the hints
    (divisible by 16, equal to 1), warps and stages are those of a real launch.
    """
    compiled: list[Any] = []
    original, gpu_of = triton.JITFunction.run, tiles.gpu_of
    # before 3.5 `active` is an attribute; later it is a property that would look for a GPU
    slot = "_active" if hasattr(driver, "_active") else "active"
    before = getattr(driver, slot)

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append(original(self, *args, grid=grid, warmup=True, **kwargs))
        return compiled[-1]

    driver.set_active(AheadDriver(capability))
    triton.JITFunction.run = compile_only
    tiles.gpu_of = lambda device: tiles.Gpu("ahead", MULTIPROCESSORS[capability], capability // 10)
    try:
        yield compiled
    finally:
        triton.JITFunction.run = original
        setattr(driver, slot, before)
        tiles.gpu_of = gpu_of


def _cuobjdump(flag: str, cubin: str) -> str:
    return subprocess.run([str(CUOBJDUMP), flag, cubin], capture_output=True, text=True, check=True).stdout


_read: dict[str, Usage] = {}


def usage(kernel: Any) -> Usage:
    """Registers, stack and memory of a compiled kernel; one that several shapes share is disassembled once."""
    if kernel.hash not in _read:
        _read[kernel.hash] = _usage(kernel)
    return _read[kernel.hash]


def _usage(kernel: Any) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        table, code = _cuobjdump("--dump-resource-usage", file.name), _cuobjdump("-sass", file.name)
    registers, stack = (int(re.search(rf"{name}:(\d+)", table)[1]) for name in ("REG", "STACK"))
    accesses = re.findall(r"\b(?:LDG|STG|LDGSTS)\.E\S*", code)
    wide = sum(".128" in a for a in accesses) / max(len(accesses), 1)
    warps, capability, loop = kernel.metadata.num_warps, kernel.metadata.target.arch, sass.longest_loop(code)
    whole = sass.instructions(code)
    body = loop or whole
    return Usage(
        kernel=kernel.name,
        warps=warps,
        registers=registers,
        stack=stack,
        shared=kernel.metadata.shared,
        local=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        wide=wide,
        occupancy=occupancy(capability, warps, registers, kernel.metadata.shared),
        loop=len(loop),
        waits=sum(" LDG." in instruction for instruction in loop),
        in_flight=sass.in_flight(loop),
        total=len(whole),
        issued=len(body),
        fmas=sass.tensor_fmas(body),
        special=sass.special(body),
    )


def occupancy(capability: int, warps: int, registers: int, shared: int) -> float:
    """Resident warps over the 64 a multiprocessor can hold: bounded by registers, shared memory and 32 programs."""
    # registers are allotted in units of 256 a warp, shared memory in units of 128 bytes plus 1 KiB for the system
    by_registers = 65536 // (math.ceil(registers * 32 / 256) * 256) // warps
    by_shared = SHARED[capability][0] // (math.ceil(shared / 128) * 128 + 1024)
    return min(by_registers, by_shared, 32, 64 // warps) * warps / 64
