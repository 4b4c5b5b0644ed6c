"""cuBLASLt's functions on the CPU: builds tests/ext/emulation/blas_lt.cpp and lets latte_fast call it."""

import contextlib
import ctypes
import functools
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from latte_fast import _ext
from latte_fast._ext import blas_lt

SOURCE = Path(__file__).parents[1] / "ext" / "emulation" / "blas_lt.cpp"
STREAM = 77
TRANSPOSED = {"forward": (1, 0), "dgrad": (0, 0), "wgrad": (0, 1)}


class Stub:
    """The built library: what was called of it, and which of its functions fails next."""

    def __init__(self, path: Path):
        self.path, self.functions = path, ctypes.CDLL(str(path))
        self.functions.stub_lines.restype = ctypes.c_char_p

    def lines(self) -> list[str]:
        return self.functions.stub_lines().decode().splitlines()

    def products(self) -> list[list[int]]:
        """m, n, k, transposed a and b, epilogue, dtype, three strides, algorithm, splits, workspace, stream of each."""
        return [[int(word) for word in line.split()] for line in self.lines() if not line.startswith("search")]

    def ways(self) -> list[str]:
        """The way of each product since the last `clear`."""
        named = {(*TRANSPOSED[way.kind], way.epilogue): name for name, way in blas_lt.WAYS.items()}
        return [named[line[3], line[4], line[5]] for line in self.products()]

    def clear(self) -> None:
        self.functions.stub_clear()

    def fail(self, function: str) -> None:
        self.functions.stub_fail(function.encode())

    def alive(self) -> int:
        """Descriptions that were made and not destroyed."""
        return self.functions.stub_alive()


def build(folder: Path) -> Stub:
    gxx = shutil.which("g++")
    if not gxx or platform.machine() != "x86_64" or _ext.why_not_built():
        pytest.skip("the stub needs g++ for x86-64, and the extension that calls it")
    out = folder / "libcublasLt_stub.so"
    flags = ["-std=c++17", "-O1", "-mf16c", "-shared", "-fPIC", "-Wall", "-Werror"]
    done = subprocess.run([gxx, *flags, str(SOURCE), "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Stub(out)


def install(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the stub the library of device 0, and tensors on the CPU that device's."""

    @functools.cache
    def library(index: int) -> Any:
        return _ext.load().BlasLt(str(stub.path), False)

    stub.clear()
    monkeypatch.setattr(blas_lt, "library", library)
    monkeypatch.setattr(blas_lt, "why_not_loaded", lambda: None)
    monkeypatch.setattr(blas_lt, "on_cuda", lambda x: True)
    monkeypatch.setattr(blas_lt, "_device_of", lambda x: contextlib.nullcontext())
    monkeypatch.setattr(blas_lt, "_stream", lambda index: STREAM)
