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
# One object a source and level; the level is chosen at run time (csrc/isa.h).
ISA_FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
}
ISA_FLAGS["amx"] = [*ISA_FLAGS["avx512"], "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
CXX_FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]
CUDA_ARCHS = os.environ.get("LATTE_FAST_CUDA_ARCHS", "80;90a;100").split(";")


def jobs() -> int:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 4
    return int(os.environ.get("MAX_JOBS", max(1, min(os.cpu_count() or 1, int(memory_gib // 3)))))


def find_nvcc() -> tuple[str | None, str]:
    want = os.environ.get("LATTE_FAST_CUDA", "auto")
    if want == "0":
        return None, "LATTE_FAST_CUDA=0"
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for nvcc in [shutil.which("nvcc"), *(f"{home}/bin/nvcc" for home in homes if home)]:
        if nvcc and Path(nvcc).exists():
            return nvcc, ""
    if want == "1":
        raise SystemExit("LATTE_FAST_CUDA=1 but nvcc was not found: put it on PATH or set CUDA_HOME")
    return None, "nvcc was not found: install the CUDA toolkit, then `LATTE_FAST_CUDA=1 pip install -e .`"


def run(command: list[str]) -> str:
    """The error of a command, empty where it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    if done.stderr:
        print(done.stderr)
    return "" if done.returncode == 0 else f"{' '.join(command[:2])}: {done.stderr.strip()[-400:]}"


class BuildExt(build_ext):
    """Compiles csrc/*_cpu.cpp once a level and csrc/*_cuda.cu once; what is refused is dropped, its reason kept."""

    def build_extension(self, ext):
        self.info = {"levels": [], "refused": {}, "cuda": None, "cuda_reason": "", "error": ""}
        self.temp = Path(self.build_temp).resolve()
        self.temp.mkdir(parents=True, exist_ok=True)
        try:
            ext.extra_objects = [*self.cpu_objects(), *self.cuda_objects(ext)]
            ext.extra_compile_args += [*CXX_FLAGS, *(f"-DLATTE_HAS_{name.upper()}=1" for name in self.info["levels"])]
            ext.extra_link_args += ["-fopenmp"]
            super().build_extension(ext)
        except Exception as error:
            if os.environ.get("LATTE_FAST_CUDA") == "1":
                raise
            self.info["error"] = str(error)
            ext.optional = True
            print(f"latte_fast: built without its extension: {error}")
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = ROOT / "latte_fast" if in_place else Path(self.get_ext_fullpath(ext.name)).parent
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build_info.json").write_text(json.dumps(self.info, indent=1))

    def compile_all(self, commands: list[list[str]]) -> list[str]:
        with ThreadPoolExecutor(jobs()) as pool:
            return list(pool.map(run, commands))

    def cpu_objects(self) -> list[str]:
        cxx = shlex.split(os.environ.get("CXX") or self.compiler.compiler_cxx[0])
        self.info["compiler"] = " ".join(cxx)
        builds = [(name, source) for name in ISA_FLAGS for source in sorted((ROOT / "csrc").glob("*_cpu.cpp"))]
        target = {build: str(self.temp / f"{build[1].stem}.{build[0]}.o") for build in builds}
        commands = [
            [*cxx, "-c", str(source), "-o", target[name, source], "-fPIC", f"-DLATTE_ISA={name}",
             f"-DLATTE_ISA_{name.upper()}=1", *CXX_FLAGS, *ISA_FLAGS[name]]
            for name, source in builds
        ]  # fmt: skip
        for (name, _), why in zip(builds, self.compile_all(commands), strict=True):
            if why:
                self.info["refused"].setdefault(name, why)
        if "portable" in self.info["refused"]:
            raise RuntimeError(self.info["refused"]["portable"])
        self.info["levels"] = [name for name in ISA_FLAGS if name not in self.info["refused"]]
        return [target[build] for build in builds if build[0] in self.info["levels"]]

    def cuda_objects(self, ext) -> list[str]:
        nvcc, self.info["cuda_reason"] = find_nvcc()
        if not nvcc:
            return []
        archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHS]
        target = {source: str(self.temp / f"{source.stem}.o") for source in sorted((ROOT / "csrc").glob("*_cuda.cu"))}
        commands = [
            [nvcc, "-c", str(source), "-o", out, "-O3", "-std=c++17", "-Xcompiler=-fPIC", *archs,
             "-gencode=arch=compute_80,code=compute_80"]
            for source, out in target.items()
        ]  # fmt: skip
        failures = [why for why in self.compile_all(commands) if why]
        if failures:
            if os.environ.get("LATTE_FAST_CUDA") == "1":
                raise RuntimeError(failures[0])
            self.info["cuda_reason"] = f"{failures[0]}; fix it, then `LATTE_FAST_CUDA=1 pip install -e .`"
            return []
        self.info["cuda"] = {"nvcc": nvcc, "archs": [*CUDA_ARCHS, "compute_80"]}
        # nvcc may be a wrapper script; its dry run says where the toolkit really is
        dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        home = next(line.split("TOP=")[1] for line in dry.splitlines() if "TOP=" in line)
        ext.library_dirs += [f"{home}/lib64", f"{home}/lib"]
        ext.extra_compile_args += ["-DLATTE_HAS_CUDA=1"]
        ext.extra_link_args += ["-lcudart_static", "-lrt", "-lpthread", "-ldl"]
        return list(target.values())


setup(
    ext_modules=[Pybind11Extension("latte_fast._C", ["csrc/bindings.cpp"], cxx_std=17)],
    cmdclass={"build_ext": BuildExt},
)
