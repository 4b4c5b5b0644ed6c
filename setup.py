"""Builds latte_fast._C: C++ always, CUDA where nvcc is, and never at the cost of the install.

LATTE_FAST_CUDA=0|1|auto      skip CUDA, demand it, or take it where nvcc is found (the default)
LATTE_FAST_CUDA_ARCHS=80;90a  the compute capabilities to build for
MAX_JOBS, LATTE_FAST_CXX_FLAGS  parallel compilers (by default what cores and memory allow), more C++ flags (sanitizers)
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

AVX512 = [f"-mavx512{x}" for x in ("f", "bw", "vl", "dq")] + ["-mfma", "-mf16c", "-mprefer-vector-width=512"]
BF16 = [*AVX512, "-mavx512bf16"]
# one object a source and level; the level is chosen at run time (csrc/isa.h)
ISA_FLAGS = {"portable": [], "avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": AVX512, "avx512bf16": BF16}
ISA_FLAGS |= {"amx": [*BF16, "-mamx-tile", "-mamx-bf16"]}
EXTRA = shlex.split(os.environ.get("LATTE_FAST_CXX_FLAGS", ""))
CXX_FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fPIC", *EXTRA]
CUDA_ARCHS = os.environ.get("LATTE_FAST_CUDA_ARCHS", "80;90a;100").split(";")
WANT_CUDA = os.environ.get("LATTE_FAST_CUDA", "auto")


def compile_all(compiler: list[str], flags: list[str], objects: dict[Path, str]) -> str:
    """Compiles sources to objects, as many at a time as cores and memory allow; the first error, empty without one."""
    commands = [[*compiler, "-c", str(source), "-o", out, *flags] for source, out in objects.items()]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 4
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", max(1, min(os.cpu_count() or 1, memory_gib // 3))))) as pool:
        done = list(pool.map(lambda command: subprocess.run(command, capture_output=True, text=True), commands))
    return next((f"{d.args[0]}: {d.stderr.strip()[-400:]}" for d in done if d.returncode), "")


class BuildExt(build_ext):
    """Compiles csrc/*_cpu.cpp once a level and csrc/*_cuda.cu once; what is refused is dropped, its reason kept."""

    def build_extension(self, ext):
        self.info = {"levels": [], "refused": {}, "cuda": None, "cuda_reason": "", "error": ""}
        (temp := Path(self.build_temp).resolve()).mkdir(parents=True, exist_ok=True)
        try:
            ext.extra_objects = [*self.cpu_objects(temp), *self.cuda_objects(ext, temp)]
            ext.extra_compile_args += [*CXX_FLAGS, *(f"-DLATTE_HAS_{name.upper()}=1" for name in self.info["levels"])]
            super().build_extension(ext)
        except Exception as error:
            if WANT_CUDA == "1":
                raise
            self.info["error"], ext.optional = str(error), True
            print(f"latte_fast: built without its extension: {error}")
        in_place = "inplace" in self.distribution.command_options.get("build_ext", {}) or self.editable_mode
        package = Path("latte_fast") if in_place else Path(self.get_ext_fullpath(ext.name)).parent
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build_info.json").write_text(json.dumps(self.info, indent=1))

    def cpu_objects(self, temp: Path) -> list[str]:
        cxx = shlex.split(os.environ.get("CXX") or self.compiler.compiler_cxx[0])
        self.info["compiler"] = " ".join(cxx)
        built = []
        for name, isa in ISA_FLAGS.items():
            out = {s: str(temp / f"{s.stem}.{name}.o") for s in sorted(Path("csrc").glob("*_cpu.cpp"))}
            why = compile_all(cxx, [f"-DLATTE_ISA={name}", f"-DLATTE_ISA_{name.upper()}=1", *CXX_FLAGS, *isa], out)
            if why and name == "portable":
                raise RuntimeError(why)
            self.info["refused"] |= {name: why} if why else {}
            self.info["levels"] += [] if why else [name]
            built += [] if why else out.values()
        return built

    def cuda_objects(self, ext, temp: Path) -> list[str]:
        homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
        nvcc = shutil.which("nvcc", path=os.pathsep.join([os.environ["PATH"], *(f"{h}/bin" for h in homes if h)]))
        out = {source: str(temp / f"{source.stem}.o") for source in sorted(Path("csrc").glob("*_cuda.cu"))}
        why = "LATTE_FAST_CUDA=0" if WANT_CUDA == "0" else "" if nvcc else "nvcc was not found: install CUDA's toolkit"
        if not why:
            codes = [*(f"arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHS), "arch=compute_80,code=compute_80"]
            why = compile_all([nvcc, "-O3", "-std=c++17", "-Xcompiler=-fPIC"], [f"-gencode={c}" for c in codes], out)
        if why and WANT_CUDA == "1":
            raise RuntimeError(f"LATTE_FAST_CUDA=1: {why}")
        if why:
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


EXTENSION = Pybind11Extension("latte_fast._C", ["csrc/bindings.cpp"], cxx_std=17, extra_link_args=["-fopenmp", *EXTRA])
EXTENSION.depends = [*map(str, Path("csrc").glob("*.h"))]
setup(ext_modules=[EXTENSION], cmdclass={"build_ext": BuildExt})
