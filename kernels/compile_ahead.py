"""Compiles what a launcher launches without a GPU and reads the cubin's registers, stack and memory."""

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

from latte_fast.kernels import sass, tiles

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# capability -> (shared memory of a multiprocessor, of a program), bytes
SHARED = {80: (164 * 1024, 163 * 1024), 90: (228 * 1024, 227 * 1024), 100: (228 * 1024, 227 * 1024)}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel holds; `local` counts local loads and stores, `wide` is the share of 16-byte accesses.

    `loop` is the longest loop's instructions, which is what each of a program's warps issues a time around, `waits` the
    loads from memory among them that are not asked for ahead, and `in_flight` the copies that stay under way where it
    waits. `total` is all of a kernel's instructions; `issued`, `fmas` and `special` are a warp's instructions, its
    multiply-adds on tensor cores and its special functions in the loop, or in all of a kernel that has none.
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
        """Programs beside each other on a multiprocessor."""
        return round(self.occupancy * 64 / self.warps)


class AheadDriver:
    """As much of a Triton driver as compiling asks for."""

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
    """Inside, launches compile for the capability and run nothing; the compiled kernels gather in the list.

    Launchers are called on meta tensors, whose address 0 is as aligned as a fresh allocation's, so that the hints
    (divisible by 16, equal to 1), warps and stages are a launch's own.
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
    """Registers, stack and memory of a compiled kernel; several shapes share one, which is disassembled once."""
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
    # registers come in units of 256 a warp, shared memory in units of 128 bytes with 1 KiB of the system's
    by_registers = 65536 // (math.ceil(registers * 32 / 256) * 256) // warps
    by_shared = SHARED[capability][0] // (math.ceil(shared / 128) * 128 + 1024)
    return min(by_registers, by_shared, 32, 64 // warps) * warps / 64
