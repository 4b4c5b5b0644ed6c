"""Builds latte_fast._C by ninja: C++ always, CUDA where nvcc is, and never at the cost of the install.

LATTE_FAST_CUDA=0|1|auto      skip CUDA, demand it, or take it where nvcc is found (the default)
LATTE_FAST_CUDA_ARCHS=80;90a  the compute capabilities to build for
LATTE_FAST_CXX_FLAGS          more C++ flags (sanitizers)
MAX_JOBS                      parallel compilers, by default what cores and memory allow
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512"]
AVX512_BF16 = [*AVX512, "-mavx512bf16"]
# one object a source of csrc/cpu and level; the level is chosen at run time (csrc/cpu/isa.h)
LEVELS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512bf16": AVX512_BF16,
    "amx": [*AVX512_BF16, "-mamx-tile", "-mamx-bf16"],
}
EXTRA = shlex.split(os.environ.get("LATTE_FAST_CXX_FLAGS", ""))
CXX_FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fPIC", *EXTRA]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC"]
CUDA_ARCHS = os.environ.get("LATTE_FAST_CUDA_ARCHS", "80;90a;100").split(";")
WANT_CUDA = os.environ.get("LATTE_FAST_CUDA", "auto")
# of one compiler
BUILD_INFO = "_build_info.json"
GIB_A_JOB = 3


class Ninja:
    """A build.ninja that is written as targets are added, and run; what is up to date is not built again."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.rules: list[str] = ["ninja_required_version = 1.8"]
        self.targets: dict[str, list[str]] = {}

    def rule(self, name: str, command: list[str], depfile: bool = True) -> None:
        depends = ["  depfile = $out.d", "  deps = gcc"] if depfile else []
        self.rules += [f"rule {name}", f"  command = {shlex.join(command)}", *depends]

    def build(self, target: str, rule: str, sources: list[Path] | list[str], out: str) -> str:
        """Adds a file of this folder to a target; returns its name."""
        escaped = " ".join(str(s).replace(" ", "$ ") for s in sources)
        self.rules.append(f"build {out}: {rule} {escaped}")
        self.targets.setdefault(target, []).append(out)
        return out

    def run(self, *targets: str) -> str:
        """Builds targets; the first error, empty without one."""
        phony = [f"build {name}: phony {' '.join(outs)}" for name, outs in self.targets.items()]
        text = "\n".join([*self.rules, *phony, ""])
        # ninja's variables in commands that shlex quoted
        text = text.replace("'$in'", "$in").replace("'$out'", "$out").replace("'$out.d'", "$out.d")
        (self.folder / "build.ninja").write_text(text)
        command = [ninja(), "-C", str(self.folder), "-j", str(jobs()), "-k", "0", *targets]
        done = subprocess.run(command, capture_output=True, text=True)
        return "" if done.returncode == 0 else f"{' '.join(targets)}: {(done.stdout + done.stderr).strip()[-600:]}"


def ninja() -> str:
    """The ninja of PyPI's package, or of the system."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise RuntimeError("ninja was not found: pip install ninja") from None
        return found
    return str(Path(BIN_DIR) / "ninja")


def jobs() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**32
    return int(os.environ.get("MAX_JOBS", max(1, min(os.cpu_count() or 1, memory // 2**30 // GIB_A_JOB))))


class BuildExt(build_ext):
    """Runs ninja over csrc; what a compiler refuses is left out, and its reason is kept for `latte-fast doctor`."""

    def build_extension(self, ext: Extension) -> None:
        self.info = {"levels": [], "refused": {}, "cuda": None, "cuda_reason": "", "error": ""}
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            self.build_by_ninja(target)
        except Exception as error:
            if WANT_CUDA == "1":
                raise
            self.info["error"], ext.optional = str(error), True
            print(f"latte_fast: built without its extension: {error}")
        package = ROOT / "latte_fast" if self.editable_mode else target.parent
        package.mkdir(parents=True, exist_ok=True)
        (package / BUILD_INFO).write_text(json.dumps(self.info, indent=1))

    def copy_extensions_to_source(self) -> None:
        """As setuptools, which builds elsewhere whatever was asked for; with an extension goes what was built of it."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib, "latte_fast", BUILD_INFO)
        if built.is_file():
            shutil.copy(built, ROOT / "latte_fast")

    def build_by_ninja(self, target: Path) -> None:
        # beside the sources, not in a folder of this build: the next one goes on from it
        graph = Ninja(ROOT / "build" / f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}")
        cxx = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
        self.info["compiler"] = shlex.join(cxx)
        if shutil.which(cxx[0]) is None:
            raise RuntimeError(f"no C++ compiler: {cxx[0]} was not found")
        objects = {name: self.add_level(graph, cxx, name) for name in LEVELS}
        nvcc, reason = self.find_nvcc()
        cuda = self.add_cuda(graph, nvcc) if nvcc else []
        graph.run(*objects, *(["cuda"] if cuda else []))  # everything at once; what failed is asked for again below
        for name in LEVELS:
            why = graph.run(name)
            if why and name == "portable":
                raise RuntimeError(why)
            if why:
                self.info["refused"][name] = why
            else:
                self.info["levels"].append(name)
        if cuda:
            reason = graph.run("cuda")
        self.note_cuda(nvcc, reason)
        built = [out for name in self.info["levels"] for out in objects[name]]
        built += cuda if self.info["cuda"] else []
        self.link(graph, cxx, nvcc, built, target)

    def add_level(self, graph: Ninja, cxx: list[str], name: str) -> list[str]:
        defines = [f"-DLATTE_ISA={name}", f"-DLATTE_ISA_{name.upper()}=1"]
        flags = [*defines, *CXX_FLAGS, *LEVELS[name]]
        graph.rule(name + "_cxx", [*cxx, "-MMD", "-MF", "$out.d", *flags, "-c", "$in", "-o", "$out"])
        sources = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
        return [graph.build(name, name + "_cxx", [s], f"{s.stem}.{name}.o") for s in sources]

    def find_nvcc(self) -> tuple[str | None, str]:
        homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
        if WANT_CUDA == "0":
            return None, "LATTE_FAST_CUDA=0"
        nvcc = shutil.which("nvcc", path=os.pathsep.join([os.environ["PATH"], *(f"{h}/bin" for h in homes if h)]))
        return nvcc, "" if nvcc else "nvcc was not found: install CUDA's toolkit"

    def add_cuda(self, graph: Ninja, nvcc: str) -> list[str]:
        codes = [*(f"arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHS), "arch=compute_80,code=compute_80"]
        flags = [*NVCC_FLAGS, *(f"-gencode={code}" for code in codes)]
        graph.rule("nvcc", [nvcc, "-MMD", "-MF", "$out.d", *flags, "-c", "$in", "-o", "$out"])
        sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
        return [graph.build("cuda", "nvcc", [s], f"{s.stem}.cuda.o") for s in sources]

    def note_cuda(self, nvcc: str | None, reason: str) -> None:
        if reason and WANT_CUDA == "1":
            raise RuntimeError(f"LATTE_FAST_CUDA=1: {reason}")
        if reason:
            command = "" if WANT_CUDA == "0" else ", then `LATTE_FAST_CUDA=1 pip install -e .`"
            self.info["cuda_reason"] = reason + command
        else:
            self.info["cuda"] = {"nvcc": nvcc, "archs": [*CUDA_ARCHS, "compute_80"]}

    def link(self, graph: Ninja, cxx: list[str], nvcc: str | None, objects: list[str], target: Path) -> None:
        import pybind11

        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        defines = [f"-DLATTE_HAS_{name.upper()}=1" for name in self.info["levels"]]
        # dlopen, before glibc 2.34
        libraries = ["-fopenmp", *(["-ldl"] if sys.platform == "linux" else []), *EXTRA]
        if self.info["cuda"]:
            assert nvcc is not None
            defines.append("-DLATTE_HAS_CUDA=1")
            home = toolkit_of(nvcc)
            libraries += [f"-L{home}/lib64", f"-L{home}/lib", "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
        if sys.platform == "darwin":
            libraries += ["-undefined", "dynamic_lookup"]
        graph.rule("bindings_cxx", [*cxx, "-MMD", "-MF", "$out.d", *CXX_FLAGS, *includes, *defines,
                                    "-c", "$in", "-o", "$out"])  # fmt: skip
        bindings = graph.build("bindings", "bindings_cxx", [ROOT / "csrc" / "bindings.cpp"], "bindings.o")
        graph.rule("link", [*cxx, "-shared", "$in", "-o", "$out", *libraries], depfile=False)
        module = graph.build("module", "link", [bindings, *objects], "_C.so")
        why = graph.run("module")
        if why:
            raise RuntimeError(why)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(graph.folder / module, target)


def toolkit_of(nvcc: str) -> str:
    """The toolkit's folder; nvcc may be a wrapper script, and its dry run says where the toolkit really is."""
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    return next(line.split("TOP=")[1] for line in dry.splitlines() if "TOP=" in line)


setup(
    packages=[*find_packages(include=["latte_fast*"]), "latte_fast.kernels"],
    ext_modules=[Extension("latte_fast._C", ["csrc/bindings.cpp"])],
    cmdclass={"build_ext": BuildExt},
)
