"""Builds latte_fast._C: C++ always, CUDA where nvcc is, and never at the cost of the install.

LATTE_FAST_CUDA=0|1|auto      skip CUDA, demand it, or take it where nvcc is found (the default)
LATTE_FAST_CUDA_ARCHS=80;90a  the compute capabilities to build for
MAX_JOBS                      parallel compilers (the default fits cores and memory)
"""

import json
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
AVX512 = [f"-mavx512{x}" for x in ("f", "bw", "vl", "dq")] + ["-mfma", "-mf16c", "-mprefer-vector-width=512"]
# one object a source and level; the level is chosen at run time (csrc/isa.h)
ISA_FLAGS = {"portable": [], "avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": AVX512}
ISA_FLAGS["amx"] = [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
EXTRA = shlex.split(os.environ.get("LATTE_FAST_CXX_FLAGS", ""))  # for sanitizers
# GCC's own AVX-512 headers trip the last warning
CXX_FLAGS = "-O3 -std=c++17 -fopenmp -fvisibility=hidden -fno-math-errno -fPIC -Wall -Wextra -Wno-maybe-uninitialized"
CXX_FLAGS = [*CXX_FLAGS.split(), *EXTRA]
CUDA_ARCHS = os.environ.get("LATTE_FAST_CUDA_ARCHS", "80;90a;100").split(";")
WANT_CUDA = os.environ.get("LATTE_FAST_CUDA", "auto")


def run(command: list[str]) -> str:
    """The error of a command, empty where it succeeded."""
    if not shutil.which(command[0]):
        return f"{command[0]} was not found"
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stderr, end="")
    return f"{' '.join(command[:2])}: {done.stderr.strip()[-400:]}" if done.returncode else ""


def run_all(commands: list[list[str]]) -> list[str]:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 4
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", max(1, min(os.cpu_count() or 1, memory_gib // 3))))) as pool:
        return list(pool.map(run, commands))


class BuildExt(build_ext):
    """Compiles csrc/*_cpu.cpp once a level and csrc/*_cuda.cu once; what is refused is dropped, its reason kept."""

    def build_extension(self, ext):
        self.info = {"levels": [], "refused": {}, "cuda": None, "cuda_reason": "", "error": ""}
        (temp := Path(self.build_temp).resolve()).mkdir(parents=True, exist_ok=True)
        try:
            ext.extra_objects = [*self.cpu_objects(temp), *self.cuda_objects(ext, temp)]
            ext.extra_compile_args += [*CXX_FLAGS, *(f"-DLATTE_HAS_{name.upper()}=1" for name in self.info["levels"])]
            ext.extra_link_args += ["-fopenmp", *EXTRA]
            super().build_extension(ext)
        except Exception as error:
            if WANT_CUDA == "1":
                raise
            self.info["error"], ext.optional = str(error), True
            print(f"latte_fast: built without its extension: {error}")
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = ROOT / "latte_fast" if in_place else Path(self.get_ext_fullpath(ext.name)).parent
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build_info.json").write_text(json.dumps(self.info, indent=1))

    def cpu_objects(self, temp: Path) -> list[str]:
        self.info["compiler"] = os.environ.get("CXX") or self.compiler.compiler_cxx[0]
        cxx = shlex.split(self.info["compiler"])
        builds = [(name, source) for name in ISA_FLAGS for source in sorted((ROOT / "csrc").glob("*_cpu.cpp"))]
        out = {(name, source): str(temp / f"{source.stem}.{name}.o") for name, source in builds}
        flags = {n: [f"-DLATTE_ISA={n}", f"-DLATTE_ISA_{n.upper()}=1", *CXX_FLAGS, *ISA_FLAGS[n]] for n in ISA_FLAGS}
        errors = run_all([[*cxx, "-c", str(source), "-o", out[n, source], *flags[n]] for n, source in builds])
        self.info["refused"] = {name: why for (name, _), why in zip(builds, errors, strict=True) if why}
        if "portable" in self.info["refused"]:
            raise RuntimeError(self.info["refused"]["portable"])
        self.info["levels"] = [name for name in ISA_FLAGS if name not in self.info["refused"]]
        return [path for (name, _), path in out.items() if name in self.info["levels"]]

    def cuda_objects(self, ext, temp: Path) -> list[str]:
        homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
        nvcc = shutil.which("nvcc") or shutil.which(
            "nvcc", path=os.pathsep.join(f"{home}/bin" for home in homes if home)
        )
        why = "LATTE_FAST_CUDA=0" if WANT_CUDA == "0" else "" if nvcc else "nvcc was not found: install the toolkit"
        out = {source: str(temp / f"{source.stem}.o") for source in sorted((ROOT / "csrc").glob("*_cuda.cu"))}
        if not why:
            codes = [*(f"arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHS), "arch=compute_80,code=compute_80"]
            flags = ["-O3", "-std=c++17", "-Xcompiler=-fPIC", *(f"-gencode={code}" for code in codes)]
            why = next(filter(None, run_all([[nvcc, "-c", str(s), "-o", o, *flags] for s, o in out.items()])), "")
        if why:
            if WANT_CUDA == "1":
                raise RuntimeError(f"LATTE_FAST_CUDA=1: {why}")
            self.info["cuda_reason"] = why if WANT_CUDA == "0" else f"{why}, then `LATTE_FAST_CUDA=1 pip install -e .`"
            return []
        self.info["cuda"] = {"nvcc": nvcc, "archs": [*CUDA_ARCHS, "compute_80"]}
        # nvcc may be a wrapper script; its dry run says where the toolkit really is
        dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        home = next(line.split("TOP=")[1] for line in dry.splitlines() if "TOP=" in line)
        ext.library_dirs += [f"{home}/lib64", f"{home}/lib"]
        ext.extra_compile_args += ["-DLATTE_HAS_CUDA=1"]
        ext.extra_link_args += ["-lcudart_static", "-lrt", "-lpthread", "-ldl"]
        return list(out.values())


extension = Pybind11Extension("latte_fast._C", ["csrc/bindings.cpp"], cxx_std=17)
setup(ext_modules=[extension], cmdclass={"build_ext": BuildExt})
